// SPDX-License-Identifier: GPL-2.0-or-later
// Draw the time line of a domain's last start.

import { useEffect, useState } from "react";
import { Spinner } from "./patternfly";

import type { Domain } from "../model/answers";
import { showDomain } from "../model/commands";
import type { Reply } from "../model/reply";
import { formatSeconds, printable } from "../model/text";
import { timelineOf, type Span } from "../model/timeline";
import { run } from "../run";
import { Refusal } from "./Refusal";

export function LastStart({ uuid }: { uuid: string }) {
    const [reply, setReply] = useState<Reply<{ domain: Domain }>>();
    useEffect(() => {
        let wanted = true;
        void run(showDomain(uuid)).then(found => { if (wanted) setReply(found); });
        return () => { wanted = false; };
    }, [uuid]);
    if (!reply)
        return <Spinner size="md" aria-label="Reading its last start" />;
    if (!reply.ok)
        return <Refusal reason={reply.reason} variant="warning" />;
    const { spans, seconds, addedSeconds } = timelineOf(reply.answer.domain.steps ?? []);
    if (spans.length === 0)
        return <p className="dmem-quiet">No times of its start were recorded.</p>;
    return (
        <div className="dmem-timeline">
            <p>
                {`From the first call of the hook to the end of the last ${formatSeconds(seconds)}; `}
                {`pool memory added ${formatSeconds(addedSeconds)}.`}
            </p>
            {spans.map((span, at) => <SpanLine key={at} span={span} />)}
        </div>
    );
}

function SpanLine({ span }: { span: Span }) {
    const position = { left: `${String(span.left)}%`, width: `${String(span.width)}%` };
    return (
        <div className="dmem-span">
            <span className={span.isCall ? "dmem-span-name" : "dmem-span-name dmem-span-detail"}>{printable(span.name)}</span>
            <span className="dmem-track" aria-hidden>
                <span className={span.isCall ? "dmem-step" : "dmem-step dmem-step-detail"} style={position} />
            </span>
            <span className="dmem-span-seconds">{formatSeconds(span.seconds)}</span>
        </div>
    );
}
