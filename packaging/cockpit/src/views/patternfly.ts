// SPDX-License-Identifier: GPL-2.0-or-later
// Take the components of PatternFly that the page uses one by one: from its index come the styles of all of them.

export { Alert, AlertActionCloseButton } from "@patternfly/react-core/dist/esm/components/Alert";
export { Button } from "@patternfly/react-core/dist/esm/components/Button";
export { Card, CardBody, CardFooter, CardHeader, CardTitle } from "@patternfly/react-core/dist/esm/components/Card";
export { Checkbox } from "@patternfly/react-core/dist/esm/components/Checkbox";
export {
    EmptyState, EmptyStateActions, EmptyStateBody, EmptyStateFooter,
} from "@patternfly/react-core/dist/esm/components/EmptyState";
export { ExpandableSection } from "@patternfly/react-core/dist/esm/components/ExpandableSection";
export { Form, FormGroup, FormHelperText } from "@patternfly/react-core/dist/esm/components/Form";
export { FormSelect, FormSelectOption } from "@patternfly/react-core/dist/esm/components/FormSelect";
export { HelperText, HelperTextItem } from "@patternfly/react-core/dist/esm/components/HelperText";
export { Label } from "@patternfly/react-core/dist/esm/components/Label";
export { Modal, ModalBody, ModalFooter, ModalHeader } from "@patternfly/react-core/dist/esm/components/Modal";
export { Spinner } from "@patternfly/react-core/dist/esm/components/Spinner";
export { TextInput } from "@patternfly/react-core/dist/esm/components/TextInput";
export { Title } from "@patternfly/react-core/dist/esm/components/Title";
export { Flex, FlexItem } from "@patternfly/react-core/dist/esm/layouts/Flex";
export { Gallery } from "@patternfly/react-core/dist/esm/layouts/Gallery";
export { default as MemoryIcon } from "@patternfly/react-icons/dist/esm/icons/memory-icon";
