"""Whole TCP connections to a VIP, for TRex's advanced stateful mode (ASTF): connect, a request, a response, close.

TRex is client and server: its first port is the clients' side of the balancer, its second the backends'. The server answers for the
VIP and straight to the client, as with direct return, so the service must be of mode l2: TRex takes no tunnels apart.
"""

import argparse
import ipaddress

from trex.astf.api import (
    ASTFAssociationRule,
    ASTFIPGen,
    ASTFIPGenDist,
    ASTFIPGenGlobal,
    ASTFProfile,
    ASTFProgram,
    ASTFTCPClientTemplate,
    ASTFTCPServerTemplate,
    ASTFTemplate,
)


class Tcp:
    def get_profile(self, tunables=(), **kwargs):
        p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        p.add_argument("--vip", required=True, help="destination address, IPv4")
        p.add_argument("--port", type=int, default=80, help="destination port")
        p.add_argument("--source", default="198.18.0.1", help="first client address")
        p.add_argument("--sources", type=int, default=256, help="client addresses from there on")
        p.add_argument("--flows", type=int, default=0, help="connections open at once, at most; 0: no limit")
        p.add_argument("--cps", type=float, default=1, help="connections per second, before the multiplier of start (-m)")
        p.add_argument("--request", type=int, default=200, help="bytes of a request")
        p.add_argument("--response", type=int, default=1000, help="bytes of a response")
        args = p.parse_args(tunables)
        first = ipaddress.IPv4Address(args.source)
        if args.sources < 1 or not 1 <= args.port <= 65535 or args.request < 1 or args.response < 1 or args.cps <= 0 or args.flows < 0:
            p.error("--sources, --port, --request, --response and --cps must be above 0, --port at most 65535, --flows not below 0")

        client, server = ASTFProgram(), ASTFProgram()
        request, response = b"q" * args.request, b"r" * args.response
        client.connect()
        client.send(request)
        client.recv(len(response))
        server.recv(len(request))
        server.send(response)
        server.wait_for_peer_close()

        addresses = ASTFIPGen(
            glob=ASTFIPGenGlobal(ip_offset="1.0.0.0"),
            dist_client=ASTFIPGenDist(ip_range=[str(first), str(first + args.sources - 1)], distribution="seq"),
            dist_server=ASTFIPGenDist(ip_range=[args.vip, args.vip], distribution="seq"),
        )
        template = ASTFTemplate(
            client_template=ASTFTCPClientTemplate(
                program=client, ip_gen=addresses, port=args.port, cps=args.cps, limit=args.flows or None),
            server_template=ASTFTCPServerTemplate(program=server, assoc=ASTFAssociationRule(port=args.port)),
        )
        return ASTFProfile(default_ip_gen=addresses, templates=template)


def register():
    return Tcp()
