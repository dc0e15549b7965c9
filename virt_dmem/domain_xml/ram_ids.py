# SPDX-License-Identifier: GPL-2.0-or-later
"""How QEMU names the boot memory of its machines: made by ``python -m tests.rig.qemu_ram_ids``, not by hand.

From QEMU 7.2 and 10.0, by ``query-machines``. No two of them disagree.
"""

from __future__ import annotations

__all__ = ["RAM_IDS"]

RAM_IDS: tuple[tuple[str, str, str], ...] = (
    ("aarch64", "ddr", "xlnx-versal-virt"),
    ("aarch64", "ddr-ram", "xlnx-zcu102"),
    ("aarch64", "imx8mp-evk.ram", "imx8mp-evk"),
    (
        "aarch64",
        "ram",
        "ast1030-evb ast2500-evb ast2600-evb ast2700-evb ast2700a0-evb ast2700a1-evb bletchley-bmc "
        "canon-a1100 fby35-bmc fp5280g2-bmc fuji-bmc g220a-bmc kudo-bmc mori-bmc npcm750-evb "
        "npcm845-evb palmetto-bmc qcom-dc-scm-v1-bmc qcom-firework-bmc quanta-gbs-bmc quanta-gsj "
        "quanta-q71l-bmc rainier-bmc raspi0 raspi1ap raspi2b raspi3ap raspi3b raspi4b romulus-bmc "
        "sonorapass-bmc supermicro-x11spi-bmc supermicrox11-bmc tacoma-bmc tiogapass-bmc "
        "witherspoon-bmc yosemitev2-bmc",
    ),
    ("aarch64", "sbsa-ref.ram", "sbsa-ref"),
    (
        "aarch64 armv7l armv6l",
        "",
        "akita b-l475e-iot01a borzoi connex emcraft-sf2 fby35 lm3s6965evb lm3s811evb mainstone "
        "microbit musca-a musca-b1 netduino2 netduinoplus2 nuri olimex-stm32-h405 realview-eb "
        "realview-eb-mpcore realview-pb-a8 realview-pbx-a9 smdkc210 spitz stm32vldiscovery terrier "
        "tosa verdex z2",
    ),
    ("aarch64 armv7l armv6l", "DDR", "mps3-an524 mps3-an536 mps3-an547"),
    ("aarch64 armv7l armv6l", "bpim2u.ram", "bpim2u"),
    ("aarch64 armv7l armv6l", "cubieboard.ram", "cubieboard"),
    ("aarch64 armv7l armv6l", "highbank.dram", "highbank midway"),
    ("aarch64 armv7l armv6l", "imx25.ram", "imx25-pdk"),
    ("aarch64 armv7l armv6l", "integrator.ram", "integratorcp"),
    ("aarch64 armv7l armv6l", "kzm.ram", "kzm"),
    ("aarch64 armv7l armv6l", "mach-virt.ram", "virt"),
    ("aarch64 armv7l armv6l", "mcimx6ul-evk.ram", "mcimx6ul-evk"),
    ("aarch64 armv7l armv6l", "mcimx7d-sabre.ram", "mcimx7d-sabre"),
    ("aarch64 armv7l armv6l", "mps.ram", "mps2-an385 mps2-an386 mps2-an500 mps2-an505 mps2-an511 mps2-an521"),
    ("aarch64 armv7l armv6l", "musicpal.ram", "musicpal"),
    ("aarch64 armv7l armv6l", "omap1.dram", "cheetah sx1 sx1-v1"),
    ("aarch64 armv7l armv6l", "omap2.dram", "n800 n810"),
    ("aarch64 armv7l armv6l", "orangepi.ram", "orangepi-pc"),
    ("aarch64 armv7l armv6l", "sabrelite.ram", "sabrelite"),
    ("aarch64 armv7l armv6l", "strongarm.sdram", "collie"),
    ("aarch64 armv7l armv6l", "versatile.ram", "versatileab versatilepb"),
    ("aarch64 armv7l armv6l", "vexpress.highmem", "vexpress-a15 vexpress-a9"),
    ("aarch64 armv7l armv6l", "zynq.ext_ram", "xilinx-zynq-a9"),
    ("alpha", "ram", "clipper"),
    (
        "armv7l armv6l",
        "ram",
        "ast1030-evb ast2500-evb ast2600-evb bletchley-bmc canon-a1100 fby35-bmc fp5280g2-bmc "
        "fuji-bmc g220a-bmc kudo-bmc mori-bmc npcm750-evb palmetto-bmc qcom-dc-scm-v1-bmc "
        "qcom-firework-bmc quanta-gbs-bmc quanta-gsj quanta-q71l-bmc rainier-bmc raspi0 raspi1ap "
        "raspi2b romulus-bmc sonorapass-bmc supermicro-x11spi-bmc supermicrox11-bmc tacoma-bmc "
        "tiogapass-bmc witherspoon-bmc yosemitev2-bmc",
    ),
    ("cris", "axisdev88.ram", "axis-dev88"),
    ("i686 x86_64", "", "x-remote"),
    ("i686 x86_64", "microvm.ram", "microvm"),
    ("i686 x86_64", "pc.ram", "isapc pc pc-i440fx pc-q35 q35"),
    ("loongarch64", "loongarch.ram", "virt"),
    ("m68k", "an5206.ram", "an5206"),
    ("m68k", "m68k_mac.ram", "q800"),
    ("m68k", "m68k_virt.ram", "virt"),
    ("m68k", "mcf5208.ram", "mcf5208evb"),
    ("m68k", "next.ram", "next-cube"),
    ("microblaze microblazeel", "", "petalogix-ml605 petalogix-s3adsp1800 xlnx-zynqmp-pmu"),
    ("mips mips64 mips64el mipsel", "mips_malta.ram", "malta"),
    ("mips mips64 mips64el mipsel", "mips_mipssim.ram", "mipssim"),
    ("mips64 mips64el", "mips_jazz.ram", "magnum pica61"),
    ("mips64el", "boston.ddr", "boston"),
    ("mips64el", "fuloong2e.ram", "fuloong2e"),
    ("mips64el", "loongson3.highram", "loongson3-virt"),
    ("openrisc", "", "or1k-sim virt"),
    ("parisc", "ram", "B160L C3700 hppa"),
    ("ppc ppc64 ppc64le", "", "40p"),
    ("ppc ppc64 ppc64le", "mpc8544ds.ram", "mpc8544ds ppce500"),
    ("ppc ppc64 ppc64le", "pegasos2.ram", "pegasos2"),
    ("ppc ppc64 ppc64le", "ppc405.ram", "ref405ep"),
    ("ppc ppc64 ppc64le", "ppc4xx.sdram", "bamboo sam460ex"),
    ("ppc ppc64 ppc64le", "ppc_core99.ram", "mac99"),
    ("ppc ppc64 ppc64le", "ppc_heathrow.ram", "g3beige"),
    ("ppc ppc64 ppc64le", "ram", "amigaone virtex-ml507"),
    ("ppc64 ppc64le", "pnv.ram", "powernv powernv10 powernv10-rainier powernv8 powernv9"),
    ("ppc64 ppc64le", "ppc_spapr.ram", "pseries pseries-2.12-sxxm"),
    ("riscv32", "riscv.lowrisc.ibex.ram", "opentitan"),
    ("riscv32 riscv64", "", "amd-microblaze-v-generic"),
    ("riscv32 riscv64", "riscv.sifive.e.ram", "sifive_e"),
    ("riscv32 riscv64", "riscv.sifive.u.ram", "sifive_u"),
    ("riscv32 riscv64", "riscv.spike.ram", "spike"),
    ("riscv32 riscv64", "riscv_virt_board.ram", "virt"),
    ("riscv64", "microchip.icicle.kit.ram", "microchip-icicle-kit"),
    ("riscv64", "riscv.shakti.c.ram", "shakti_c"),
    ("s390x", "s390.ram", "s390-ccw-virtio"),
    ("sh4 sh4eb", "", "r2d shix"),
    ("sparc", "leon3.ram", "leon3_generic"),
    ("sparc", "sun4m.ram", "LX SPARCClassic SPARCbook SS-10 SS-20 SS-4 SS-5 SS-600MP Voyager"),
    ("sparc64", "", "sun4u sun4v"),
    ("sparc64", "sun4v-partition.ram", "niagara"),
    ("xtensa xtensaeb", "", "kc705 kc705-nommu lx200 lx200-nommu lx60 lx60-nommu ml605 ml605-nommu sim virt"),
)
"""Architectures of libvirt; the id, empty where QEMU has no memory backend for boot memory; the machine types
with it. A type stands for all its versions: ``pc-q35`` for ``pc-q35-7.2`` and for ``pc-q35-rhel9.4.0``."""
