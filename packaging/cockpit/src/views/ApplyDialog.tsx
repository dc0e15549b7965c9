// SPDX-License-Identifier: GPL-2.0-or-later
// Rewrite a domain so that its memory comes from a pool: first show the difference, then do it.

import { useEffect, useState } from "react";
import { FormGroup, FormSelect, FormSelectOption, Spinner } from "./patternfly";

import type { Pool } from "../model/answers";
import { applyDomain, judgeDomains, previewApply } from "../model/commands";
import { candidatesOf, type Candidate } from "../model/domains";
import { printable } from "../model/text";
import { Dialog } from "./Dialog";
import { Diff } from "./Diff";
import { Refusal } from "./Refusal";
import { useAction, type Action } from "./action";

interface Props {
    pools: Pool[];
    onClose: () => void;
    onDone: (notes: string[]) => void;
}

export function ApplyDialog({ pools, onClose, onDone }: Props) {
    const action = useAction();
    const candidates = useCandidates(action);
    const [chosen, setChosen] = useState("");
    const [pool, setPool] = useState(pools[0]?.name ?? "");
    const [diff, setDiff] = useState<string>();
    const [notes, setNotes] = useState<string[]>([]);
    const candidate = candidates?.find(one => keyOf(one) === chosen);
    const choose = (domain: string, ofPool: string) => {
        action.clear();
        setDiff(undefined);
        setChosen(domain);
        setPool(ofPool);
    };
    const show = () => {
        action.start(previewApply(chosen, pool), (answer, said) => {
            setDiff(answer.diff ?? "");
            setNotes(said);
        });
    };
    const apply = () => {
        action.start(applyDomain(chosen, pool), (_answer, said) => { onDone(said); });
    };
    const shown = diff !== undefined && diff !== "";
    const below = (
        <>
            {candidate?.reason && <Refusal reason={candidate.reason} />}
            {diff !== undefined && <Diff diff={diff} notes={notes} />}
        </>
    );
    return (
        <Dialog title="Apply to a domain" action={action} button={shown ? "Apply" : "Show the difference"}
            description="Its XML is rewritten, so that its memory comes from a pool at its next start."
            isDisabled={!candidate || candidate.verdict === "refused" || diff === ""}
            onSubmit={shown ? apply : show} onClose={onClose} below={below}>
            <FormGroup label="Domain" fieldId="dmem-domain" isRequired>
                {candidates
                    ? <DomainSelect candidates={candidates} value={chosen} onChange={key => { choose(key, pool); }} />
                    : !action.reason && <Spinner size="md" aria-label="Asking libvirt" />}
            </FormGroup>
            <FormGroup label="Pool" fieldId="dmem-pool">
                <FormSelect id="dmem-pool" value={pool} aria-label="Pool"
                    onChange={(_event, name) => { choose(chosen, name); }}>
                    {pools.map(({ name }) => <FormSelectOption key={name} value={name} label={printable(name)} />)}
                </FormSelect>
            </FormGroup>
        </Dialog>
    );
}

/** Return what apply says of all domains; undefined: not known yet, or refused. */
function useCandidates(action: Action): Candidate[] | undefined {
    const [candidates, setCandidates] = useState<Candidate[]>();
    useEffect(() => {
        action.start(judgeDomains(), answer => { setCandidates(candidatesOf(answer.domains ?? [])); });
        // eslint-disable-next-line react-hooks/exhaustive-deps -- once, when the dialog opens
    }, []);
    return candidates;
}

/** Return what names a candidate in a command: its UUID; one that is refused has only a name, which is not used. */
function keyOf(candidate: Candidate): string {
    return candidate.uuid || candidate.name;
}

interface SelectProps {
    candidates: Candidate[];
    value: string;
    onChange: (key: string) => void;
}

const WORDS = { possible: "", done: " (applied already)", refused: " (not possible)" };

function DomainSelect({ candidates, value, onChange }: SelectProps) {
    return (
        <FormSelect id="dmem-domain" value={value} aria-label="Domain" onChange={(_event, key) => { onChange(key); }}>
            <FormSelectOption value="" label={candidates.length > 0 ? "Choose one" : "libvirt has none"} isPlaceholder />
            {candidates.map(one => (
                <FormSelectOption key={keyOf(one)} value={keyOf(one)} label={`${printable(one.name)}${WORDS[one.verdict]}`} />
            ))}
        </FormSelect>
    );
}
