// SPDX-License-Identifier: GPL-2.0-or-later
// Keep the state of something that a dialog does: whether it is under way, and why it was refused.

import { useState } from "react";

import type { Call } from "../model/commands";
import type { Reason } from "../model/reply";
import { run } from "../run";

export interface Action {
    busy: boolean;
    reason: Reason | undefined;
    /** Run a command; `done` is called with its answer and notes unless it is refused. */
    start: <Answer>(call: Call<Answer>, done: (answer: Answer, notes: string[]) => void) => void;
    /** Forget a refusal, as what was refused is being changed. */
    clear: () => void;
}

export function useAction(): Action {
    const [busy, setBusy] = useState(false);
    const [reason, setReason] = useState<Reason>();
    return {
        busy,
        reason,
        start: (call, done) => {
            setBusy(true);
            setReason(undefined);
            void run(call).then(reply => {
                setBusy(false);
                if (reply.ok)
                    done(reply.answer, reply.notes);
                else
                    setReason(reply.reason);
            });
        },
        clear: () => { setReason(undefined); },
    };
}
