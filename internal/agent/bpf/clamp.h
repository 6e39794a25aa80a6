// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
//
// The clamp. It runs at tc egress (tcx) of a backend's interface and sees every packet that leaves there:
//
//   a SYN-ACK from a VIP with a larger MSS than packets to the VIP may have  → the MSS is lowered
//   everything else                                                           → untouched
//
// The backend's answers go straight to the client, so the backend tells the client an MSS after its own interface, and
// knows nothing of the header that a node puts around the client's packets. With it they would not fit the network
// between node and backend. Only the option's value is changed, in place: a SYN-ACK without the option stays without,
// since the client then sends 536 bytes at most over IPv4 and 1,220 over IPv6 (RFC 9293, 3.7.1).

#pragma once

#include "common.h"
#include "options.h"

#define TCP_SYN_ACK 0x12

SEC("tcx/egress")
int sluice_clamp(struct __sk_buff *skb)
{
	struct address source;
	__u32 tcp_at, zero = 0;
	bool ipv6 = false;
	union {
		struct iphdr v4;
		struct ipv6hdr v6;
	} ip = {};
	struct tcphdr tcp;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip.v4)) || ip.v4.protocol != IPPROTO_TCP ||
		    ip.v4.version != 4 || ip.v4.ihl < 5 || ip.v4.frag_off & bpf_htons(IP_MF_OR_OFFSET))
			return TCX_NEXT;
		tcp_at = ETH_HLEN + ip.v4.ihl * 4;
		source = mapped(ip.v4.saddr);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		// Backends send SYN-ACKs without extension headers.
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip.v6)) || ip.v6.nexthdr != IPPROTO_TCP ||
		    ip.v6.version != 6)
			return TCX_NEXT;
		tcp_at = ETH_HLEN + sizeof(ip.v6);
		source = native(&ip.v6.saddr);
		ipv6 = true;
	} else {
		return TCX_NEXT;
	}
	// Nearly all packets leave here: the flags are the byte at 13.
	if (bpf_skb_load_bytes(skb, tcp_at, &tcp, sizeof(tcp)) || (((__u8 *)&tcp)[13] & TCP_SYN_ACK) != TCP_SYN_ACK ||
	    tcp.doff < 5)
		return TCX_NEXT;
	if (!bpf_map_lookup_elem(&vips, &source))
		return TCX_NEXT;

	struct options o = {};
	__u32 mss_at = find_option(&o, skb, tcp_at, tcp.doff, TCPOPT_MSS, TCPOLEN_MSS);
	__be16 mss;

	if (!mss_at || bpf_skb_load_bytes(skb, mss_at + 2, &mss, sizeof(mss)))
		return TCX_NEXT;

	// A pointer into a map is used before the next call, so that the compiler need not keep it on the stack, and both
	// fields are read (volatile), so that it does not choose between two addresses: the verifier is stricter about both
	// with an agent that lacks CAP_PERFMON.
	struct parameters *now = bpf_map_lookup_elem(&settings, &zero);
	if (!now) // cannot be: the array has an element 0
		return TCX_NEXT;
	__u16 limit4 = *(volatile __u16 *)&now->mss_ipv4, limit6 = *(volatile __u16 *)&now->mss_ipv6;
	__u16 limit = ipv6 ? limit6 : limit4;

	if (!limit || bpf_ntohs(mss) <= limit)
		return TCX_NEXT;

	__be16 lower = bpf_htons(limit);
	__u16 from = mss, to = lower;

	// The checksum is over words of 16 bits: a value at an odd offset lies across two of them, as if its bytes were
	// swapped (RFC 1071, 2 (B)).
	if ((mss_at - tcp_at) & 1) {
		from = __builtin_bswap16(from);
		to = __builtin_bswap16(to);
	}
	if (bpf_skb_store_bytes(skb, mss_at + 2, &lower, sizeof(lower), 0))
		return TCX_NEXT; // no memory for a copy of a shared packet: it goes as it is
	// Not BPF_F_PSEUDO_HDR: a checksum that the device is to finish (CHECKSUM_PARTIAL) holds the pseudo header only, and
	// the helper leaves it alone. This cannot fail: the header was made writable above.
	bpf_l4_csum_replace(skb, tcp_at + offsetof(struct tcphdr, check), from, to, sizeof(mss));

	struct counters *count = bpf_map_lookup_elem(&counts, &zero);
	if (count)
		count->clamped++;
	return TCX_NEXT;
}
