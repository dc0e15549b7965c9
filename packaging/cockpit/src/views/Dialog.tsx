// SPDX-License-Identifier: GPL-2.0-or-later
// Frame a dialog: its title, its form, what it shows below, the refusal of what it did last, and its buttons.

import type { FormEvent, ReactNode } from "react";
import { Button, Form, Modal, ModalBody, ModalFooter, ModalHeader } from "./patternfly";

import { Refusal } from "./Refusal";
import type { Action } from "./action";

interface DialogProps {
    title: string;
    description?: string;
    action: Action;
    /** The fields of its form. */
    children: ReactNode;
    below?: ReactNode;
    /** Its main button, and what it does. */
    button: string;
    isDisabled: boolean;
    onSubmit: () => void;
    onClose: () => void;
}

export function Dialog(
    { title, description, action, children, below, button, isDisabled, onSubmit, onClose }: DialogProps,
) {
    const submit = (event: FormEvent) => {
        event.preventDefault();
        onSubmit();
    };
    return (
        <Modal isOpen variant="medium" position="top" aria-labelledby="dmem-dialog" onClose={onClose}>
            <ModalHeader title={title} description={description} labelId="dmem-dialog" />
            <ModalBody>
                <Form id="dmem-form" isWidthLimited onSubmit={submit}>{children}</Form>
                {below}
                {action.reason && <Refusal reason={action.reason} />}
            </ModalBody>
            <ModalFooter>
                <Button variant="primary" type="submit" form="dmem-form" isLoading={action.busy}
                    isDisabled={isDisabled || action.busy}>{button}</Button>
                <Button variant="link" onClick={onClose}>Cancel</Button>
            </ModalFooter>
        </Modal>
    );
}
