// SPDX-License-Identifier: GPL-2.0-or-later
// Frame a dialog: its title, its content, the refusal of what it did last, and its buttons.

import type { ReactNode } from "react";
import { Button, Modal, ModalBody, ModalFooter, ModalHeader } from "./patternfly";

import { Refusal } from "./Refusal";
import type { Action } from "./action";

interface DialogProps {
    title: string;
    description?: string;
    action: Action;
    children: ReactNode;
    /** Its main button, and what it does. */
    button: string;
    isDisabled: boolean;
    onSubmit: () => void;
    onClose: () => void;
}

export function Dialog({ title, description, action, children, button, isDisabled, onSubmit, onClose }: DialogProps) {
    return (
        <Modal isOpen variant="medium" position="top" aria-labelledby="dmem-dialog" onClose={onClose}>
            <ModalHeader title={title} description={description} labelId="dmem-dialog" />
            <ModalBody>
                {children}
                {action.reason && <Refusal reason={action.reason} />}
            </ModalBody>
            <ModalFooter>
                <Button variant="primary" isDisabled={isDisabled || action.busy} isLoading={action.busy} onClick={onSubmit}>
                    {button}
                </Button>
                <Button variant="link" onClick={onClose}>Cancel</Button>
            </ModalFooter>
        </Modal>
    );
}
