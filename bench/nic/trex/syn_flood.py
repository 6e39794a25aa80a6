"""A SYN flood on a VIP: random ports and sequence numbers, from random ones of many addresses."""

import os
import sys

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from trex.stl.api import STLPktBuilder, STLStream, STLTXCont, STLVmFlowVar, STLVmWrFlowVar

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import flows  # noqa: E402

OPTIONS = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]  # as Linux clients offer


class SynFlood:
    def get_streams(self, direction=0, tunables=(), **kwargs):
        # --flows is meaningless here: each packet may be a new one.
        args = flows.parse(tunables, __doc__, sources=65536, flows=65536)
        packet = Ether() / IP(src=args.source, dst=args.vip) / TCP(
            sport=flows.FIRST_PORT, dport=args.port, flags="S", window=64240, options=OPTIONS)
        vm = flows.at_random(
            args, "TCP",
            STLVmFlowVar(name="isn", min_value=0, max_value=2**32 - 1, size=4, op="random"),
            STLVmWrFlowVar(fv_name="isn", pkt_offset="TCP.seq"),
        )
        return [STLStream(name="syn", packet=STLPktBuilder(pkt=flows.pad(packet, 64), vm=vm), mode=STLTXCont(pps=args.pps))]


def register():
    return SynFlood()
