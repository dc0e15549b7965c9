// SPDX-License-Identifier: GPL-2.0-or-later
// Create a pool.

import { useState } from "react";
import {
    Checkbox, FormGroup, FormHelperText, FormSelect, FormSelectOption, HelperText, HelperTextItem, TextInput,
} from "./patternfly";

import { createPool, type PoolWish } from "../model/commands";
import { formatSize } from "../model/text";
import { Dialog } from "./Dialog";
import { useAction } from "./action";

const BACKENDS: [NonNullable<PoolWish["backend"]>, string][] = [
    ["hugetlbfs", "Huge pages"],
    ["dmemfs", "dmemfs: memory that was reserved at boot"],
    ["tmpfs", "tmpfs: ordinary memory, which saves nothing"],
];
const PAGES = ["2M", "1G"];

interface Props {
    onClose: () => void;
    onDone: (notes: string[]) => void;
}

export function CreateDialog({ onClose, onDone }: Props) {
    const action = useAction();
    const [wish, setWish] = useState<PoolWish>({ name: "", backend: "hugetlbfs", size: "", pageSize: "", onBoot: true });
    const change = (part: Partial<PoolWish>) => {
        action.clear();
        setWish({ ...wish, ...part });
    };
    const submit = () => {
        action.start(createPool(wish), ({ pool }, notes) => {
            onDone([`Pool ${pool.name} is created, with ${formatSize(pool.capacity_bytes)}.`, ...notes]);
        });
    };
    return (
        <Dialog title="Create pool" button="Create" action={action} isDisabled={wish.name.trim() === ""}
            description="It is created in full, or not at all." onSubmit={submit} onClose={onClose}>
            <FormGroup label="Name" fieldId="dmem-name" isRequired>
                <TextInput id="dmem-name" value={wish.name} isRequired
                    onChange={(_event, name) => { change({ name }); }} />
            </FormGroup>
            <FormGroup label="Kind of memory" fieldId="dmem-backend">
                <FormSelect id="dmem-backend" value={wish.backend} aria-label="Kind of memory"
                    onChange={(_event, chosen) => { change({ backend: backendOf(chosen), pageSize: "" }); }}>
                    {BACKENDS.map(([value, label]) => <FormSelectOption key={value} value={value} label={label} />)}
                </FormSelect>
            </FormGroup>
            <FormGroup label="Size" fieldId="dmem-size">
                <TextInput id="dmem-size" value={wish.size} placeholder="4G"
                    onChange={(_event, size) => { change({ size }); }} />
                <SizeHelp />
            </FormGroup>
            {wish.backend !== "tmpfs" && (
                <FormGroup label="Pages" fieldId="dmem-pages">
                    <FormSelect id="dmem-pages" value={wish.pageSize} aria-label="Pages"
                        onChange={(_event, pageSize) => { change({ pageSize }); }}>
                        <FormSelectOption value="" label="As virt-dmem chooses" />
                        {PAGES.map(size => <FormSelectOption key={size} value={size} label={size} />)}
                    </FormSelect>
                </FormGroup>
            )}
            <Checkbox id="dmem-on-boot" label="Restore it at each boot" isChecked={wish.onBoot}
                onChange={(_event, onBoot) => { change({ onBoot }); }} />
        </Dialog>
    );
}

export function SizeHelp() {
    return (
        <FormHelperText>
            <HelperText>
                <HelperTextItem>In all, as in 64G, spread evenly over the nodes; or of each node, as in 0=48G 1=16G</HelperTextItem>
            </HelperText>
        </FormHelperText>
    );
}

function backendOf(chosen: string): PoolWish["backend"] {
    return BACKENDS.map(([value]) => value).find(value => value === chosen);
}
