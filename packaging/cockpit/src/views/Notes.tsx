// SPDX-License-Identifier: GPL-2.0-or-later
// Show what a command said beside its answer.

import { Alert, AlertActionCloseButton } from "./patternfly";

import { printable } from "../model/text";

export function Notes({ notes, onClose }: { notes: string[]; onClose: () => void }) {
    if (notes.length === 0)
        return null;
    return (
        <Alert className="dmem-notes" isInline variant="success" title={printable(notes[0] ?? "")}
            actionClose={<AlertActionCloseButton onClose={onClose} />}>
            {notes.slice(1).map((note, at) => <p key={at}>{printable(note)}</p>)}
        </Alert>
    );
}
