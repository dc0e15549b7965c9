// SPDX-License-Identifier: GPL-2.0-or-later
// Follow the light or dark style that was chosen in Cockpit's menu.

const KEY = "shell:style";
const DARK = "pf-v6-theme-dark";

/** Set the style now, and whenever it is changed in this window, in another one, or by the system. */
export function followTheme(): void {
    const system = window.matchMedia("(prefers-color-scheme: dark)");
    const update = (chosen?: unknown) => {
        const style = typeof chosen === "string" ? chosen : localStorage.getItem(KEY) ?? "auto";
        const dark = style === "dark" || (style === "auto" && system.matches);
        document.documentElement.classList.toggle(DARK, dark);
    };
    window.addEventListener("storage", event => { if (event.key === KEY) update(); });
    window.addEventListener("cockpit-style", event => {
        const detail: unknown = event instanceof CustomEvent ? event.detail : null;
        update(typeof detail === "object" && detail !== null && "style" in detail ? detail.style : undefined);
    });
    system.addEventListener("change", () => { update(); });
    update();
}
