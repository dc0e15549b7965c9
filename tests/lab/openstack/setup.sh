#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Make a Debian host with the packages below an OpenStack whose guests' memory is in pools, without its compute hosts,
# which compute.sh makes: these may be this host too, and take nova.conf from here.
#
#   keystone placement-api glance nova-api nova-conductor nova-scheduler nova-compute nova-compute-kvm
#   rabbitmq-server mariadb-server python3-openstackclient python3-pymysql openssh-server
#
# For tests: one password for everything, and in neutron's place fake_neutron.py, which knows of no network. All else
# is the real thing.
#
#   setup.sh ADDRESS POOL_MIB VIRT_TYPE
#
# ADDRESS: at which compute hosts reach it; POOL_MIB: of the pool of each; VIRT_TYPE: kvm, or qemu on hosts without.

set -eu

address=$1
pool_mib=$2
virt_type=$3
here=$(cd "$(dirname "$0")" && pwd)
secret=openstack
export LC_ALL=C.UTF-8

connection() { # DATABASE
    echo "connection = mysql+pymysql://openstack:$secret@localhost/$1?unix_socket=/run/mysqld/mysqld.sock"
}

who() { # how a service proves to keystone who it is
    echo "auth_type = password
auth_url = http://$address:5000/v3
username = admin
password = $secret
project_name = admin
user_domain_id = default
project_domain_id = default
region_name = lab"
}

write() { # USER FILE: from standard input, readable for that service only
    install -D -o root -g "$1" -m 0640 /dev/stdin "$2"
}

# each of these processes loads all of its service
sed -i 's/^processes = .*/processes = 2/' /etc/*/*-uwsgi.ini

# -- database and message queue, whose user "guest" is for its own host only by default
echo 'loopback_users = none' >>/etc/rabbitmq/rabbitmq.conf
systemctl start mariadb.service rabbitmq-server.service
for database in keystone placement glance nova_api nova nova_cell0; do
    echo "CREATE DATABASE $database; GRANT ALL ON $database.* TO openstack@localhost IDENTIFIED BY '$secret';"
done | mariadb

# -- keystone: who may do what, and where each service is
write keystone /etc/keystone/keystone.conf <<EOF
[database]
$(connection keystone)
[token]
provider = fernet
EOF
install -d -o keystone -g keystone -m 0700 /etc/keystone/fernet-keys /etc/keystone/credential-keys
su -s /bin/sh keystone -c 'keystone-manage db_sync'
keystone-manage fernet_setup --keystone-user keystone --keystone-group keystone
keystone-manage credential_setup --keystone-user keystone --keystone-group keystone
keystone-manage bootstrap --bootstrap-password "$secret" --bootstrap-region-id lab \
    --bootstrap-public-url "http://$address:5000/v3" --bootstrap-internal-url "http://$address:5000/v3"
systemctl start keystone.service
cat >/root/openstackrc <<EOF
export OS_AUTH_URL=http://$address:5000/v3 OS_USERNAME=admin OS_PASSWORD=$secret OS_PROJECT_NAME=admin
export OS_USER_DOMAIN_ID=default OS_PROJECT_DOMAIN_ID=default OS_REGION_NAME=lab OS_IDENTITY_API_VERSION=3
export OS_COMPUTE_API_VERSION=2.95
EOF
# shellcheck disable=SC1091 # made above
. /root/openstackrc
until openstack token issue >/dev/null 2>&1; do sleep 1; done
python3 - <<EOF
import openstack
cloud = openstack.connect()
places = {"compute": ":8774/v2.1", "placement": ":8778", "image": ":9292", "network": ":9696"}
for kind, place in places.items():
    service = cloud.identity.create_service(type=kind, name=kind)
    for interface in ("public", "internal"):
        cloud.identity.create_endpoint(
            service_id=service.id, interface=interface, region_id="lab", url="http://$address" + place
        )
EOF

# -- placement: what hosts have, and what is taken of it
write placement /etc/placement/placement.conf <<EOF
[api]
auth_strategy = keystone
[keystone_authtoken]
$(who)
[placement_database]
$(connection placement)
EOF
su -s /bin/sh placement -c 'placement-manage db sync'

# -- glance: images, as files
write glance /etc/glance/glance-api.conf <<EOF
[DEFAULT]
enabled_backends = images:file
workers = 1
[database]
$(connection glance)
[glance_store]
default_backend = images
[images]
filesystem_store_datadir = /var/lib/glance/images
[keystone_authtoken]
$(who)
[paste_deploy]
flavor = keystone
EOF
install -d -o glance -g glance /var/lib/glance/images
su -s /bin/sh glance -c 'glance-manage db_sync'

# -- nova. What matters here is [libvirt] file_backed_memory: all memory of all guests is in files, and the host has
#    as much for guests as that says. With the size of the pool there, the scheduler counts the pool.
write nova /etc/nova/nova.conf <<EOF
[DEFAULT]
my_ip = $address
compute_driver = libvirt.LibvirtDriver
transport_url = rabbit://guest:guest@$address:5672/
state_path = /var/lib/nova
ram_allocation_ratio = 1.0
cpu_allocation_ratio = 16.0
allow_resize_to_same_host = true
reserved_host_memory_mb = 0
use_cow_images = false
shelved_offload_time = 0
rpc_response_timeout = 300
service_down_time = 180
[api_database]
$(connection nova_api)
[database]
$(connection nova)
[conductor]
workers = 1
[scheduler]
workers = 1
discover_hosts_in_cells_interval = 5
[oslo_concurrency]
lock_path = /var/lib/nova/tmp
[keystone_authtoken]
$(who)
[placement]
$(who)
# a kernel beside the disk: nova inspects it as if it were a disk, when the server comes from another host
[workarounds]
disable_deep_image_inspection = true
[service_user]
send_service_user_token = true
$(who)
[neutron]
$(who)
[vnc]
enabled = false
[spice]
enabled = false
[libvirt]
virt_type = $virt_type
cpu_mode = none
images_type = raw
file_backed_memory = $pool_mib
live_migration_scheme = tcp
live_migration_inbound_addr = $address
EOF
install -d -o nova -g nova /var/lib/nova/tmp
su -s /bin/sh nova -c '
    set -e
    mkdir -p -m 0700 /var/lib/nova/.ssh # the key by which compute hosts reach each other
    cd /var/lib/nova/.ssh
    ssh-keygen -q -t ed25519 -N "" -f id_ed25519
    cp id_ed25519.pub authorized_keys
    printf "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n" >config
    nova-manage api_db sync
    nova-manage cell_v2 map_cell0
    nova-manage cell_v2 create_cell --name cell1
    nova-manage db sync
'

systemd-run --quiet --unit fake-neutron python3 "$here/fake_neutron.py"
systemctl start placement-api.service glance-api.service nova-api.service
systemctl start nova-conductor.service nova-scheduler.service
until openstack compute service list -f value -c Binary -c State | sort | uniq | tr '\n' ' ' |
    grep -q '^nova-conductor up nova-scheduler up $'; do sleep 1; done
