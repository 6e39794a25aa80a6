// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
//
// The decapsulator. It runs at tc ingress (tcx) of a backend's interface and sees every packet that arrives there:
//
//   IP-in-IP or GUE to an address of this host, around a packet to a VIP  → the outer headers are taken off; the kernel
//                                                                            goes on with the inner packet as if it
//                                                                            had come alone
//   everything else                                                       → the kernel, untouched
//
// TCP packets to a VIP, decapsulated or not, go through accept.h next.
//
// All four pairs of families are taken. GUE is variant 1 of draft-ietf-intarea-gue: the inner IP header follows the UDP
// header, and its version field tells the family. The program decides what it has to know to take headers off and no
// more: the kernel's IP input follows, and checks the inner packet's lengths and checksums as it does for any packet.
//
// The outer UDP checksum is not verified, and may be zero over IPv6 too (RFC 6935): summing up the packet would cost more
// than all the rest. What it would protect has its own: the inner transport's checksum covers payload and addresses, and
// an outer address that was changed on the way is not one of this host's, or not an allowed source (RFC 6936, 4).
//
// An interface can be told to merge datagrams of one flow that have checksums into a large one (rx-udp-gro-forwarding,
// rx-gro-list). All inner headers but the first are then amid its data, where no program can take them off: such packets
// are counted, and left alone.
//
// Two kinds of packet to a VIP are dropped, since handing them to the kernel would let a tunnel device of the host take
// off what was refused here: those of a source that is not allowed, and those that RFC 6040 says to drop.

#pragma once

#include "accept.h"
#include "common.h"

// ECN codepoints (RFC 3168).
#define NOT_ECT 0
#define ECT_1 1
#define ECT_0 2
#define CE 3
#define ECN_MASK 3

// checksum_ok verifies an IPv4 header of `words` 32-bit words that begins at `offset` in the packet; 1 if it is right. It
// is a function of its own for the verifier, which then looks at the loop once, and not on every way that leads there.
__noinline int checksum_ok(struct __sk_buff *skb, __u32 offset, __u32 words)
{
	__u64 sum = 0;

	for (__u32 i = 0; i < 15; i++) {
		__u32 word;

		if (i >= words)
			break;
		if (bpf_skb_load_bytes(skb, offset + 4 * i, &word, 4))
			return 0;
		sum += word;
	}
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff;
}

// merged_ecn is the codepoint of the inner packet after decapsulation, or -1 for a packet to be dropped (RFC 6040, 4.2).
static __always_inline int merged_ecn(__u8 outer, __u8 inner)
{
	if (outer == CE)
		return inner == NOT_ECT ? -1 : CE;
	if (outer == ECT_1 && inner == ECT_0)
		return ECT_1;
	return inner;
}

// set_ecn4 writes the type-of-service byte of the inner IPv4 header at `offset`. The header's checksum changes by as
// much as the byte does, so a checksum over the whole packet (CHECKSUM_COMPLETE) stays what it is.
static __always_inline int set_ecn4(struct __sk_buff *skb, __u32 offset, const struct iphdr *ip, __u8 ecn)
{
	__u8 tos = (ip->tos & ~ECN_MASK) | ecn;
	int err = bpf_l3_csum_replace(skb, offset + offsetof(struct iphdr, check), bpf_htons(ip->tos), bpf_htons(tos), 2);

	return err ? err : bpf_skb_store_bytes(skb, offset + offsetof(struct iphdr, tos), &tos, 1, 0);
}

// set_ecn6 does so in an IPv6 header, whose traffic class lies across two bytes and which has no checksum of its own: a
// checksum over the whole packet has to be told.
static __always_inline int set_ecn6(struct __sk_buff *skb, __u32 offset, const struct ipv6hdr *ip, __u8 ecn)
{
	__u8 second = (ip->flow_lbl[0] & ~(ECN_MASK << 4)) | ecn << 4;

	return bpf_skb_store_bytes(skb, offset + 1, &second, 1, BPF_F_RECOMPUTE_CSUM);
}

static __always_inline bool source_allowed(const struct address *source)
{
	struct prefix key = {.bits = 128, .address = *source};

	return bpf_map_lookup_elem(&sources, &key) != NULL;
}

SEC("tcx/ingress")
int sluice_decap(struct __sk_buff *skb)
{
	struct address outer_dst, outer_src, inner_dst;
	__u32 outer_len, zero = 0;
	__u8 proto, outer_ecn, inner_ecn;
	bool fragment = false, later = false, good = true;

	// A tagged packet is on its way to a VLAN device, not to this interface's addresses.
	if (skb->vlan_present)
		return TCX_NEXT;

	// The outer header. Nearly all packets leave here.
	union {
		struct iphdr v4;
		struct ipv6hdr v6;
	} outer = {}, inner = {};

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &outer, sizeof(outer.v4)))
			return TCX_NEXT;
		proto = outer.v4.protocol;
		outer_dst = mapped(outer.v4.daddr);
		outer_src = mapped(outer.v4.saddr);
		outer_len = outer.v4.ihl * 4;
		outer_ecn = outer.v4.tos & ECN_MASK;
		fragment = outer.v4.frag_off & bpf_htons(IP_MF_OR_OFFSET);
		later = outer.v4.frag_off & bpf_htons(IP_OFFSET);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		// Nodes write no extension headers; a packet with any is somebody else's.
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &outer, sizeof(outer.v6)))
			return TCX_NEXT;
		proto = outer.v6.nexthdr;
		outer_dst = native(&outer.v6.daddr);
		outer_src = native(&outer.v6.saddr);
		outer_len = sizeof(outer.v6);
		outer_ecn = outer.v6.flow_lbl[0] >> 4 & ECN_MASK;
	} else {
		return TCX_NEXT;
	}
	// headers is the length of all that is to be taken off, room what an inner packet may fill.
	__u32 headers = outer_len, room = ~0U;

	if (proto == IPPROTO_UDP) {
		struct parameters *now = bpf_map_lookup_elem(&settings, &zero);
		struct udphdr udp;

		// A later fragment does not tell its port.
		if (!now || !now->gue_port || later || bpf_skb_load_bytes(skb, ETH_HLEN + outer_len, &udp, sizeof(udp)) ||
		    udp.dest != bpf_htons(now->gue_port))
			return TCX_NEXT;
		headers += sizeof(udp);
		room = bpf_ntohs(udp.len);
		room = room < sizeof(udp) ? 0 : room - sizeof(udp);
	} else if (proto != IPPROTO_IPIP && proto != IPPROTO_IPV6) {
		if (accept_cookies && proto == IPPROTO_TCP)
			accept_cookie(skb); // it may have come to a VIP as it is
		return TCX_NEXT;
	}
	if (!bpf_map_lookup_elem(&addresses, &outer_dst))
		return TCX_NEXT;

	struct counters *count = bpf_map_lookup_elem(&counts, &zero);
	if (!count) // cannot be: the array has an element 0
		return TCX_NEXT;

	// What GRO merged counts as what it was; the helper that takes the header off forgets this number.
	__u32 packets = skb->gso_segs ? skb->gso_segs : 1;

	if (fragment) {
		count->fragment += packets;
		return TCX_NEXT;
	}
	if (skb->protocol == bpf_htons(ETH_P_IP))
		good = outer.v4.version == 4 && outer.v4.ihl >= 5 && checksum_ok(skb, ETH_HLEN, outer.v4.ihl);
	else
		good = outer.v6.version == 6;

	// The inner header.
	__u32 inner_at = ETH_HLEN + headers, inner_len;
	bool inner4 = proto == IPPROTO_IPIP;

	if (proto == IPPROTO_UDP) {
		__u8 first = 0;

		good = good && !bpf_skb_load_bytes(skb, inner_at, &first, sizeof(first));
		inner4 = first >> 4 == 4; // what is neither 4 nor 6 fails below
	}
	if (inner4) {
		good = good && !bpf_skb_load_bytes(skb, inner_at, &inner, sizeof(inner.v4)) && inner.v4.version == 4 &&
		       inner.v4.ihl >= 5;
		inner_dst = mapped(inner.v4.daddr);
		inner_ecn = inner.v4.tos & ECN_MASK;
		inner_len = bpf_ntohs(inner.v4.tot_len);
	} else {
		good = good && !bpf_skb_load_bytes(skb, inner_at, &inner, sizeof(inner.v6)) && inner.v6.version == 6;
		inner_dst = native(&inner.v6.daddr);
		inner_ecn = inner.v6.flow_lbl[0] >> 4 & ECN_MASK;
		inner_len = sizeof(inner.v6) + bpf_ntohs(inner.v6.payload_len);
	}
	good = good && inner_len <= room;
	if (!good) {
		count->malformed += packets;
		return TCX_NEXT;
	}
	if (!bpf_map_lookup_elem(&vips, &inner_dst)) {
		count->not_vip += packets;
		return TCX_NEXT;
	}
	if (!source_allowed(&outer_src)) {
		count->source += packets;
		return TC_ACT_SHOT;
	}

	// A segment of TCP that was made large on its way, in its tunnel, fills the packet; the first of several does not.
	if (proto == IPPROTO_UDP && skb->gso_size && inner_at + inner_len != skb->len) {
		count->merged += packets;
		return TCX_NEXT;
	}

	int ecn = merged_ecn(outer_ecn, inner_ecn);
	if (ecn < 0) {
		count->ecn += packets;
		return TC_ACT_SHOT;
	}

	int err = 0;
	if (ecn != inner_ecn)
		err = inner4 ? set_ecn4(skb, inner_at, &inner.v4, ecn) : set_ecn6(skb, inner_at, &inner.v6, ecn);

	// FIXED_GSO: a merged packet's segment size is that of the inner packets already. The checksum state that the NIC
	// reported is forgotten (no NO_CSUM_RESET), since it may have been about the outer packet; what GRO merged it has
	// verified itself, and stays as it is. The flow hash stays, so that receive flow steering finds what it stored.
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO |
		      (inner4 ? BPF_F_ADJ_ROOM_DECAP_L3_IPV4 : BPF_F_ADJ_ROOM_DECAP_L3_IPV6);
	__be16 ethertype = inner4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);

	if (!err)
		err = bpf_skb_adjust_room(skb, -(__s32)headers, BPF_ADJ_ROOM_MAC, flags);
	// The helper sets skb->protocol; the frame itself is ours to mend, for those who capture it further on.
	if (!err)
		err = bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto), &ethertype, sizeof(ethertype), 0);
	if (err) {
		count->failed += packets;
		return TC_ACT_SHOT;
	}

	// The barrier keeps the compiler from one addition at an address that it has calculated, which the verifier does not take
	// from an agent that lacks CAP_PERFMON.
	if (inner4) {
		count->decapsulated_ipv4 += packets;
		asm volatile("" ::: "memory");
	} else {
		count->decapsulated_ipv6 += packets;
	}
	if (accept_cookies)
		accept_cookie(skb);
	return TCX_NEXT;
}
