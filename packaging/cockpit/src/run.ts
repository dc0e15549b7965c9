// SPDX-License-Identifier: GPL-2.0-or-later
// Run commands of virt-dmem on the host: the only module that has Cockpit do something.

import type { Call } from "./model/commands";
import { readReply, type Reply } from "./model/reply";

/** Its messages are in one language, and its sizes in one form. */
const ENVIRONMENT = ["LC_ALL=C.UTF-8"];

/** Run a command to its end; a refusal is a reply as well. */
export function run<Answer>(call: Call<Answer>): Promise<Reply<Answer>> {
    return new Promise(resolve => {
        const end = (stdout: string | undefined, stderr: string | undefined, problem: string | null) => {
            resolve(readReply<Answer>({ stdout: stdout ?? "", stderr: stderr ?? "", problem: problem ?? "" }));
        };
        start(call).then(
            (stdout, stderr) => { end(stdout, stderr, null); },
            (failure, stdout) => { end(stdout, failure.message, failure.problem); }, // also where it only exits with 1
        );
    });
}

/** Call back whenever a command that does not end prints something; return how to stop it. */
export function follow(call: Call<unknown>, changed: () => void): () => void {
    const process = start(call);
    process.stream(changed).then(() => { /* it ended: the timer goes on */ }, () => { /* likewise */ });
    return () => { process.close("cancelled"); };
}

function start(call: Call<unknown>): CockpitProcess {
    return cockpit.spawn([...call.argv], {
        superuser: call.changes ? "require" : "try",
        err: "message",
        environ: ENVIRONMENT,
    });
}
