# SPDX-License-Identifier: GPL-2.0-or-later
"""Domain XML as hypothesis invents it: valid for libvirt's schema, in any order, white space and company."""

from __future__ import annotations

from hypothesis import strategies as st

NS = "https://virt-dmem.dev/xmlns/domain/1.0"
COMMENTS = ["", "", "", "<!-- a comment -->", "<!---->", "<?pi data?>"]

REQUESTS = [
    f"<dmem:memory xmlns:dmem='{NS}'/>",
    f"<dmem:memory xmlns:dmem='{NS}' pool='x'/>",
    f"<dmem:memory xmlns:dmem='{NS}' pool='x'></dmem:memory>",
    f"<d:memory xmlns:d='{NS}' pool='x'> <!-- why --> </d:memory>",
    f"<memory xmlns='{NS}' pool='other'>\n    <!-- why -->\n  </memory>",
    f"<memory xmlns='{NS}'/>",
]
FOREIGN = [
    "<app:x xmlns:app='http://example.com/app'>text <app:y a='1'/> more</app:x>",
    "<x xmlns='http://example.com/default'><y/></x>",
    "<dmem:memory xmlns:dmem='http://example.com/not-ours'/>",
    "<o:libosinfo xmlns:o='http://libosinfo.org/xmlns'>\n <o:os id='&amp;&lt;\"'/>\n</o:libosinfo>",
]
BACKING = [
    ["<hugepages/>", "<hugepages><page size='2048' unit='KiB'/></hugepages>",
     "<hugepages>\n <page size='1' unit='G' nodeset='0'/>\n</hugepages>"],
    ["<source type='file'/>", "<source type='memfd'/>", "<source type='anonymous'/>"],
    ["<access mode='shared'/>", "<access mode='private'/>"],
    ["<allocation mode='ondemand'/>", "<allocation mode='immediate' threads='8'/>", "<allocation threads='2'/>"],
    ["<nosharepages/>"],
    ["<locked/>"],
    ["<discard/>", "<discard></discard>"],
]  # fmt: skip


@st.composite
def domains(draw: st.DrawFn) -> bytes:
    """A domain of type kvm."""
    gaps = draw(st.sampled_from([[""], ["\n  "], ["\n\t"], ["", " ", "\n", "\n      ", "\r\n "]]))

    def gap() -> str:
        return draw(st.sampled_from(gaps)) + draw(st.sampled_from(COMMENTS)) + draw(st.sampled_from(gaps))

    def joined(elements: list[str]) -> str:
        return gap() + "".join(element + gap() for element in elements)

    def some(choices: list[list[str]]) -> list[str]:
        picked = [draw(st.sampled_from(choice)) for choice in choices if draw(st.booleans())]
        return draw(st.permutations(picked))

    def shuffled(elements: list[str]) -> str:
        return gap().join(draw(st.permutations(elements)))

    name = f"<name>{draw(st.sampled_from(['a', 'web-1', 'é &amp; ü']))}</name>"
    resources = ["<vcpu>2</vcpu>", *some([["<currentMemory>1024</currentMemory>"]])]
    parts = [
        shuffled([name, *some([["<uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>"], ["<genid/>"]])]),
        "<os><type arch='x86_64' machine='q35'>hvm</type></os>",
        *some([["<title>t</title>"], ["<description>d ]]&gt; <![CDATA[<&]]></description>"], ["<devices/>"]]),
    ]
    if draw(st.booleans()):
        metadata = some([REQUESTS, *([one] for one in FOREIGN)])
        parts.append(
            f"<metadata>{joined(metadata)}</metadata>" if metadata or draw(st.booleans()) else "<metadata/>"
        )
    if draw(st.booleans()):
        resources.append(f"<memoryBacking>{joined(some(BACKING))}</memoryBacking>")
    has_cells = draw(st.booleans())
    if has_cells:
        cells = [
            f"<cell cpus='{cell}' memory='524288'{draw(st.sampled_from(['', *ACCESS]))}/>"
            for cell in range(draw(st.integers(1, 3)))
        ]
        parts.append(f"<cpu>{gap()}<numa>{joined(cells)}</numa>{gap()}</cpu>")
    if not has_cells or draw(st.booleans()):
        resources.append("<memory unit='MiB'>1024</memory>")
    # The schema lets these stand anywhere, but libxml2 validates them only side by side.
    parts.append(shuffled(resources))
    before = draw(st.sampled_from(["", "<?xml version='1.0'?>\n", "<?xml version='1.0' encoding='utf-8'?>"]))
    before += draw(st.sampled_from(["", "<!-- generated -->\n"]))
    declared = draw(
        st.sampled_from(["", f" xmlns:dmem='{NS}'", f" xmlns:a='{NS}' xmlns:dmem='http://example.com'"])
    )
    body = joined(draw(st.permutations(parts)))
    return f"{before}<domain type='kvm'{declared}>{body}</domain>{draw(st.sampled_from(['', chr(10)]))}".encode()


ACCESS = [" memAccess='shared'"]
