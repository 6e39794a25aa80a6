"""Packets of known flows to a VIP: TCP segments with ACK, 64 bytes, of a million flows in turn.

Where the service has established flows only, send a SYN to each first: syn_flood.py does, if its sources are the same.
"""

import os
import sys

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from trex.stl.api import STLPktBuilder, STLStream, STLTXCont

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import flows  # noqa: E402


class MillionFlows:
    def get_streams(self, direction=0, tunables=(), **kwargs):
        args = flows.parse(tunables, __doc__, flows=1_000_000, sources=1000)
        packet = Ether() / IP(src=args.source, dst=args.vip) / TCP(sport=flows.FIRST_PORT, dport=args.port, flags="A", seq=1, ack=1)
        return [STLStream(
            name="flows",
            packet=STLPktBuilder(pkt=flows.pad(packet, 64), vm=flows.in_turn(args, "TCP")),
            mode=STLTXCont(pps=args.pps),
        )]


def register():
    return MillionFlows()
