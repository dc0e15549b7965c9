// SPDX-License-Identifier: GPL-2.0-or-later
// Show what a code means, once somebody asks.

import { useState } from "react";
import { Button } from "./patternfly";

import { explain } from "../model/commands";
import { printable } from "../model/text";
import { run } from "../run";

export function Explanation({ code }: { code: string }) {
    const [text, setText] = useState("");
    const ask = () => {
        void run(explain(code)).then(reply => {
            setText(reply.ok ? reply.answer.explanation : `${reply.reason.message} ${reply.reason.hint}`);
        });
    };
    if (text !== "")
        return <p className="dmem-explanation"><code>{printable(code)}</code>: {printable(text)}</p>;
    return <Button variant="link" isInline onClick={ask}>What does {printable(code)} mean?</Button>;
}
