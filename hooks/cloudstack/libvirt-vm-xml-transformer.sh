#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# virt-dmem's hook for CloudStack's agent (4.21 or later): gives its VMs their memory from a pool. The agent runs it as
# 'libvirt-vm-xml-transformer.sh transform XML', and starts the VM with the XML that it prints.
# Whatever goes wrong here the agent ignores, and starts the VM on ordinary memory. So that it does not start then, what
# is printed asks for memory of a pool without being rewritten: virt-dmem's libvirt hook rejects that.

vms='i-*' # the VMs of users; system VMs and routers are named v-*, s-* and r-*
pool=guests

xml=$2
case $xml in '\<'*) xml=$(printf '%s\n' "$xml" | sed 's/\\\(.\)/\1/g') ;; esac # escaped as for a shell, by some versions
name=${xml#*<name>}
# shellcheck disable=SC2254 # a pattern
case ${name%%</name>*} in
$vms) ;;
*)
    printf '%s\n' "$xml"
    exit 0
    ;;
esac

if rewritten=$(printf '%s\n' "$xml" | virt-dmem rewrite --pool "$pool" 2>/dev/null); then
    printf '%s\n' "$rewritten"
else
    reason=$(printf '%s\n' "$xml" | virt-dmem rewrite --pool "$pool" 2>&1 >/dev/null)
    logger -t virt-dmem -p user.err -- "${name%%</name>*}: $reason" 2>/dev/null
    request="<metadata><dmem:memory xmlns:dmem='https://virt-dmem.dev/xmlns/domain/1.0'/></metadata>"
    printf '%s\n' "${xml%%>*}>$request${xml#*>}"
fi
