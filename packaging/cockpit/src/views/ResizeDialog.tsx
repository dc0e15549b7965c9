// SPDX-License-Identifier: GPL-2.0-or-later
// Resize a pool: first show what would be done, then do it.

import { useState } from "react";
import { FormGroup, TextInput } from "./patternfly";

import type { Pool } from "../model/answers";
import { changeSentences } from "../model/changes";
import { previewResize, resizePool } from "../model/commands";
import { formatSize, printable } from "../model/text";
import { SizeHelp } from "./CreateDialog";
import { Dialog } from "./Dialog";
import { useAction } from "./action";

interface Props {
    pool: Pool;
    onClose: () => void;
    onDone: (notes: string[]) => void;
}

interface Preview {
    sentences: string[];
    notes: string[];
}

export function ResizeDialog({ pool, onClose, onDone }: Props) {
    const action = useAction();
    const [size, setSize] = useState("");
    const [preview, setPreview] = useState<Preview>();
    const change = (typed: string) => {
        action.clear();
        setPreview(undefined);
        setSize(typed);
    };
    const show = () => {
        action.start(previewResize(pool.name, size), (answer, notes) => {
            setPreview({ sentences: changeSentences(answer.changes), notes });
        });
    };
    const resize = () => {
        action.start(resizePool(pool.name, size), (answer, notes) => {
            onDone([`Pool ${pool.name} has ${formatSize(answer.pool.capacity_bytes)}.`, ...notes]);
        });
    };
    const changes = preview && preview.sentences.length > 0;
    return (
        <Dialog title={`Resize ${printable(pool.name)}`} action={action} button={changes ? "Resize" : "Show what it does"}
            description={`It has ${formatSize(pool.capacity_bytes)}. Memory that domains hold is never touched.`}
            isDisabled={size.trim() === "" || (preview !== undefined && !changes)}
            onSubmit={changes ? resize : show} onClose={onClose}
            below={preview && <PreviewText preview={preview} />}>
            <FormGroup label="New size" fieldId="dmem-new-size" isRequired>
                <TextInput id="dmem-new-size" value={size} isRequired onChange={(_event, typed) => { change(typed); }} />
                <SizeHelp />
            </FormGroup>
        </Dialog>
    );
}

function PreviewText({ preview }: { preview: Preview }) {
    const sentences = preview.sentences.length > 0 ? preview.sentences : ["The pool has this size already."];
    return (
        <ul className="dmem-preview" aria-label="What it does">
            {[...sentences, ...preview.notes].map(sentence => <li key={sentence}>{printable(sentence)}</li>)}
        </ul>
    );
}
