"""The simple Internet mix to a VIP: UDP, of 12 packets seven of 64 bytes, four of 594, one of 1518, of many flows."""

import os
import sys

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from trex.stl.api import STLPktBuilder, STLStream, STLTXCont

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import flows  # noqa: E402

SHARES = ((64, 7), (594, 4), (1518, 1))


class Imix:
    def get_streams(self, direction=0, tunables=(), **kwargs):
        args = flows.parse(tunables, __doc__)
        total = sum(share for _, share in SHARES)
        streams = []
        for size, share in SHARES:
            packet = Ether() / IP(src=args.source, dst=args.vip) / UDP(sport=flows.FIRST_PORT, dport=args.port)
            streams.append(STLStream(
                name="imix-%d" % size,
                packet=STLPktBuilder(pkt=flows.pad(packet, size), vm=flows.in_turn(args, "UDP")),
                mode=STLTXCont(pps=args.pps * share / total),
            ))
        return streams


def register():
    return Imix()
