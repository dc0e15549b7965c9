// SPDX-License-Identifier: GPL-2.0-or-later
// Tell the lines of a unified diff apart.

export interface DiffLine {
    kind: "added" | "removed" | "place" | "same";
    text: string;
}

/** Return the lines of a diff, without the two that name its files. */
export function diffLines(diff: string): DiffLine[] {
    if (diff === "")
        return [];
    const lines = diff.split("\n");
    const body = lines[0]?.startsWith("--- ") && lines[1]?.startsWith("+++ ") ? lines.slice(2) : lines;
    return body.map(text => ({ kind: kindOf(text), text }));
}

function kindOf(line: string): DiffLine["kind"] {
    if (line.startsWith("@@"))
        return "place";
    if (line.startsWith("+"))
        return "added";
    return line.startsWith("-") ? "removed" : "same";
}
