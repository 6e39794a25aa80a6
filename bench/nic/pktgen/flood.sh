#!/bin/sh
# UDP packets of one size, the smallest by default, to a VIP.
set -eu
# shellcheck source=bench/nic/pktgen/common.sh
. "$(dirname "$0")/common.sh"
about='Sends UDP packets of one size to a VIP, of many flows in random order.'
size=64

options "$@"
# pktgen puts 16 bytes of its own into each packet: with IPv6 headers that is more than fits into 64.
case $vip in *:*) [ "$size" -ge 82 ] || size=82 ;; esac
prepare "pkt_size $((size - 4))"
run
