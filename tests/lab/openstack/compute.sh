#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Make a host with the packages of setup.sh a compute host, with the /etc/nova/nova.conf and the /var/lib/nova/.ssh that
# it wrote: others reach its libvirt, and its guests when they migrate, at ADDRESS. For tests: nobody has to say who he
# is.
#
#   compute.sh ADDRESS

set -eu

address=$1

# hosts that are containers of one machine have one UUID, and libvirt migrates nothing to the same host
cat >>/etc/libvirt/libvirtd.conf <<EOF
auth_tcp = "none"
host_uuid = "$(cat /proc/sys/kernel/random/uuid)"
EOF
install -d /etc/systemd/system/libvirtd-tcp.socket.d
cat >/etc/systemd/system/libvirtd-tcp.socket.d/address.conf <<EOF
[Socket]
ListenStream=
ListenStream=$address:16509
EOF
install -d /etc/systemd/system/nova-compute.service.d # on an emulated host it is not up in five minutes
printf '[Service]\nTimeoutStartSec=infinity\n' >/etc/systemd/system/nova-compute.service.d/slow.conf
systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service
systemctl --quiet enable libvirtd.socket libvirtd-ro.socket libvirtd-tcp.socket ssh.service nova-compute.service
systemctl start libvirtd.socket libvirtd-ro.socket libvirtd-tcp.socket

# the disks of a server that is resized to another host go there by ssh
usermod --shell /bin/sh nova
echo "ListenAddress $address" >/etc/ssh/sshd_config.d/address.conf
systemctl restart ssh.service

# compute hosts reach no database, and nova-compute waits for one that is named
sed -i '/^\[\(api_\)*database\]$/,+1d' /etc/nova/nova.conf
sed -i "s/^my_ip = .*/my_ip = $address/; s/^live_migration_inbound_addr = .*/live_migration_inbound_addr = $address/" \
    /etc/nova/nova.conf
rm -f /etc/nova/nova-compute.conf # Debian's own: virt_type = kvm
install -d -o nova -g nova /var/lib/nova/tmp /var/lib/nova/instances
systemctl start --no-block nova-compute.service
