// SPDX-License-Identifier: GPL-2.0-or-later
// Lay out the page, and open its dialogs.

import { useState } from "react";
import { Button, Flex, FlexItem, Spinner, Title } from "./patternfly";

import { reasonsOf, useHost } from "../host";
import type { Pool } from "../model/answers";
import { Alerts } from "./Alerts";
import { ApplyDialog } from "./ApplyDialog";
import { CreateDialog } from "./CreateDialog";
import { Domains } from "./Domains";
import { Notes } from "./Notes";
import { NoPools, Pools } from "./Pools";
import { Refusal } from "./Refusal";
import { ResizeDialog } from "./ResizeDialog";
import { Savings } from "./Savings";

type Open = { dialog: "none" | "create" | "apply" } | { dialog: "resize"; pool: Pool };

export function App() {
    const host = useHost();
    const [open, setOpen] = useState<Open>({ dialog: "none" });
    const [notes, setNotes] = useState<string[]>([]);
    const pools = host.pools.value;
    const close = () => { setOpen({ dialog: "none" }); };
    const done = (said: string[]) => {
        setNotes(said);
        close();
        host.refresh();
    };
    const create = () => { setOpen({ dialog: "create" }); };

    if (!pools && !host.pools.reason)
        return <div className="dmem-loading"><Spinner aria-label="Reading pools" /></div>;
    return (
        <main className="dmem-page">
            <Flex className="dmem-header">
                <FlexItem grow={{ default: "grow" }}><Title headingLevel="h1">Memory pools</Title></FlexItem>
                <Button variant="secondary" isDisabled={!pools?.length}
                    onClick={() => { setOpen({ dialog: "apply" }); }}>Apply to a domain</Button>
                <Button variant="primary" isDisabled={!pools} onClick={create}>Create pool</Button>
            </Flex>
            <Notes notes={notes} onClose={() => { setNotes([]); }} />
            {reasonsOf(host).map(reason => <Refusal key={reason.message} reason={reason} variant="warning" />)}
            <Alerts alerts={host.alerts.value ?? []} />
            {pools && (pools.length > 0
                ? <Pools pools={pools} onResize={pool => { setOpen({ dialog: "resize", pool }); }} />
                : <NoPools onCreate={create} />)}
            {host.domains.value && <Domains held={host.domains.value} applied={host.applied.value ?? []} />}
            {host.savings.value && host.savings.value.length > 0 && <Savings pools={host.savings.value} />}
            {open.dialog === "create" && <CreateDialog onClose={close} onDone={done} />}
            {open.dialog === "resize" && <ResizeDialog pool={open.pool} onClose={close} onDone={done} />}
            {open.dialog === "apply" && <ApplyDialog pools={pools ?? []} onClose={close} onDone={done} />}
        </main>
    );
}
