// SPDX-License-Identifier: GPL-2.0-or-later
// Draw a pool's memory: a bar for each node, and below them what the colours mean.

import { kindsIn, type Bar } from "../model/bars";
import { formatSize, printable } from "../model/text";

export function Bars({ bars }: { bars: Bar[] }) {
    return (
        <div className="dmem-bars">
            {bars.map(bar => (
                <div key={bar.title} className="dmem-node">
                    <span className="dmem-node-title">{printable(bar.title)}</span>
                    <div className="dmem-bar" role="img" aria-label={`${bar.title}: ${bar.words}`} title={bar.words}>
                        {bar.parts.map(part => (
                            <div key={part.kind} className={`dmem-part dmem-${part.kind}`}
                                style={{ width: `${String(part.percent)}%` }}>
                                <span className="dmem-amount" aria-hidden>
                                    {part.percent >= 18 && formatSize(part.bytes)}
                                </span>
                            </div>
                        ))}
                    </div>
                </div>
            ))}
            <ul className="dmem-legend" aria-hidden>
                {kindsIn(bars).map(([kind, name]) => (
                    <li key={kind}><span className={`dmem-swatch dmem-${kind}`} />{name}</li>
                ))}
            </ul>
        </div>
    );
}
