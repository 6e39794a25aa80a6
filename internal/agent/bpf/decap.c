// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
//
// The decapsulator. It runs at tc ingress (tcx) of a backend's interface and sees every packet that arrives there:
//
//   IP-in-IP to an address of this host, around a packet to a VIP  → the outer header is taken off; the kernel goes on
//                                                                     with the inner packet as if it had come alone
//   everything else                                                → the kernel, untouched
//
// All four pairs of families are taken. The program decides what it has to know to take a header off and no more: the
// kernel's IP input follows, and checks the inner packet's lengths and checksums as it does for any packet.
//
// Two kinds of packet to a VIP are dropped, since handing them to the kernel would let a tunnel device of the host take
// off what was refused here: those of a source that is not allowed, and those that RFC 6040 says to drop.

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// From newer kernel headers than the build needs (include/uapi/linux/bpf.h of Linux 6.6).
#define TCX_NEXT -1
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV4 (1ULL << 7)
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)

#define IP_MF_OR_OFFSET 0x3fff // of iphdr.frag_off: more fragments, or not the first

// ECN codepoints (RFC 3168).
#define NOT_ECT 0
#define ECT_1 1
#define ECT_0 2
#define CE 3
#define ECN_MASK 3

// A 128-bit address in network order; IPv4 as v4-mapped, ::ffff:a.b.c.d.
struct address {
	__u32 word[4];
};

// A prefix of such addresses, as an LPM trie has it.
struct prefix {
	__u32 bits;
	struct address address;
};

// What one CPU counted, in packets as they were on the wire: a packet that GRO merged from n counts n. Packets that are
// not IP-in-IP to this host are not counted at all.
struct counters {
	__u64 decapsulated_ipv4; // inner IPv4 packets given to the kernel
	__u64 decapsulated_ipv6; // inner IPv6 packets given to the kernel
	__u64 not_vip;           // the inner destination is not a VIP: untouched
	__u64 fragment;          // a fragment of an outer packet: untouched
	__u64 malformed;         // a header is cut short or wrong: untouched
	__u64 source;            // to a VIP, from a source that is not allowed: dropped
	__u64 ecn;               // congestion marked outside, the inner packet cannot carry the mark: dropped
	__u64 failed;            // the kernel refused to take the header off: dropped
};

// Written by Go, read here.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); // set by the loader
	__type(key, struct address);
	__type(value, __u8); // unused
} vips SEC(".maps");

// The outer destinations that are this host's.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct address);
	__type(value, __u8); // unused
} addresses SEC(".maps");

// The outer sources that are allowed.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1); // set by the loader
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u8); // unused
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counts SEC(".maps");

static __always_inline struct address mapped(__be32 v4)
{
	struct address a = {.word = {0, 0, bpf_htonl(0xffff), v4}};

	return a;
}

static __always_inline struct address native(const struct in6_addr *v6)
{
	struct address a = {.word = {v6->in6_u.u6_addr32[0], v6->in6_u.u6_addr32[1], v6->in6_u.u6_addr32[2],
				     v6->in6_u.u6_addr32[3]}};

	return a;
}

// checksum_ok verifies an IPv4 header of `words` 32-bit words that begins at `offset` in the packet.
static __always_inline bool checksum_ok(struct __sk_buff *skb, __u32 offset, __u32 words)
{
	__u64 sum = 0;

	for (__u32 i = 0; i < 15; i++) {
		__u32 word;

		if (i >= words)
			break;
		if (bpf_skb_load_bytes(skb, offset + 4 * i, &word, 4))
			return false;
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
	bool fragment = false, good = true;

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
	if (proto != IPPROTO_IPIP && proto != IPPROTO_IPV6)
		return TCX_NEXT;
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
	__u32 inner_at = ETH_HLEN + outer_len;

	if (proto == IPPROTO_IPIP) {
		good = good && !bpf_skb_load_bytes(skb, inner_at, &inner, sizeof(inner.v4)) && inner.v4.version == 4 &&
		       inner.v4.ihl >= 5;
		inner_dst = mapped(inner.v4.daddr);
		inner_ecn = inner.v4.tos & ECN_MASK;
	} else {
		good = good && !bpf_skb_load_bytes(skb, inner_at, &inner, sizeof(inner.v6)) && inner.v6.version == 6;
		inner_dst = native(&inner.v6.daddr);
		inner_ecn = inner.v6.flow_lbl[0] >> 4 & ECN_MASK;
	}
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

	int ecn = merged_ecn(outer_ecn, inner_ecn);
	if (ecn < 0) {
		count->ecn += packets;
		return TC_ACT_SHOT;
	}

	int err = 0;
	if (ecn != inner_ecn)
		err = proto == IPPROTO_IPIP ? set_ecn4(skb, inner_at, &inner.v4, ecn) : set_ecn6(skb, inner_at, &inner.v6, ecn);

	// FIXED_GSO: a merged packet's segment size is that of the inner packets already. The checksum state that the NIC
	// reported is forgotten (no NO_CSUM_RESET), since it may have been about the outer packet; what GRO merged it has
	// verified itself, and stays as it is. The flow hash stays, so that receive flow steering finds what it stored.
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO |
		      (proto == IPPROTO_IPIP ? BPF_F_ADJ_ROOM_DECAP_L3_IPV4 : BPF_F_ADJ_ROOM_DECAP_L3_IPV6);
	__be16 ethertype = proto == IPPROTO_IPIP ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);

	if (!err)
		err = bpf_skb_adjust_room(skb, -(__s32)outer_len, BPF_ADJ_ROOM_MAC, flags);
	// The helper sets skb->protocol; the frame itself is ours to mend, for those who capture it further on.
	if (!err)
		err = bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto), &ethertype, sizeof(ethertype), 0);
	if (err) {
		count->failed += packets;
		return TC_ACT_SHOT;
	}

	if (proto == IPPROTO_IPIP)
		count->decapsulated_ipv4 += packets;
	else
		count->decapsulated_ipv6 += packets;
	return TCX_NEXT;
}

// The kernel knows no "Apache" licence string; loaded into it, the program is used under its other licence.
char _license[] SEC("license") = "GPL";
