#!/bin/sh
# The simple Internet mix to a VIP: of 12 packets seven of the smallest size, four of 594 bytes, one of 1518.
set -eu
# shellcheck source=bench/nic/pktgen/common.sh
. "$(dirname "$0")/common.sh"
about='Sends UDP packets of 64 (IPv6: 82), 594 and 1518 bytes, with the checksum, 7:4:1 in random order, to a VIP, of many flows.
Needs Linux 5.15 or later.'

options "$@"
small=60
case $vip in *:*) small=78 ;; esac
prepare "imix_weights $small,7 590,4 1514,1"
run
