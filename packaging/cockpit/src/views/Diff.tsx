// SPDX-License-Identifier: GPL-2.0-or-later
// Show the difference of two XMLs, and the notes that came with it.

import { diffLines } from "../model/diff";
import { printable } from "../model/text";

export function Diff({ diff, notes }: { diff: string; notes: string[] }) {
    return (
        <>
            {diff !== "" && (
                <pre className="dmem-diff" aria-label="Difference of the XML" tabIndex={0}>
                    {diffLines(diff).map((line, at) => (
                        <span key={at} className={`dmem-line dmem-line-${line.kind}`}>{`${printable(line.text.replaceAll("\t", "        "))}\n`}</span>
                    ))}
                </pre>
            )}
            {notes.map(note => <p key={note} className="dmem-quiet">{printable(note)}</p>)}
        </>
    );
}
