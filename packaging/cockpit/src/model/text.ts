// SPDX-License-Identifier: GPL-2.0-or-later
// Turn numbers and foreign text into what can be shown.

const UNITS: [number, string][] = [
    [2 ** 60, "EiB"], [2 ** 50, "PiB"], [2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"],
];

/** Return a size as virt-dmem shows it: at most one decimal, none where it is a whole number of units. */
export function formatSize(bytes: number | null | undefined): string {
    if (bytes === null || bytes === undefined)
        return "unknown";
    const found = UNITS.find(([factor]) => Math.abs(bytes) >= factor);
    if (!found)
        return `${String(bytes)} B`;
    const [factor, unit] = found;
    return `${(bytes / factor).toFixed(bytes % factor === 0 ? 0 : 1)} ${unit}`;
}

/** Return a duration in milliseconds or seconds. */
export function formatSeconds(seconds: number): string {
    return seconds < 1 ? `${String(Math.round(seconds * 1000))} ms` : `${seconds.toFixed(2)} s`;
}

/** Return text in which what has no glyph is an escape: controls, and what turns the direction of text. */
export function printable(text: string): string {
    return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Cs}]/gu, character => {
        const code = character.codePointAt(0) ?? 0;
        return code < 0x100 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u{${code.toString(16)}}`;
    });
}

/** Return a number with its noun: "1 domain", "2 domains". */
export function counted(number: number, noun: string): string {
    return `${String(number)} ${noun}${number === 1 ? "" : "s"}`;
}
