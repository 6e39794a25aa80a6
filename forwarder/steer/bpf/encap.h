/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_ENCAP_H
#define SLUICE_ENCAP_H

// The new headers of a packet: packet.Encap.Apply in Go, byte for byte.

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "header.h"
#include "target.h"

enum {
	OUTER_TTL = 64,
	OUTER_DONT_FRAGMENT = 0x4000,
	GUE_FIRST_PORT = 0xc000, // source ports are from there on, by the flow
};

// entropy is packet.entropy: bits of a flow's hash that outsiders may see.
static __always_inline __u64 entropy(__u64 hash)
{
	return (hash ^ hash >> 32) * 0x9e3779b97f4a7c15ULL;
}

static __always_inline __u16 fold16(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline void set_macs(void *frame, const struct target *t)
{
	for (int i = 0; i < sizeof(t->macs) / sizeof(__u32); i++) // memcpy would go byte by byte
		((__u32 *)frame)[i] = ((const __u32 *)t->macs)[i];
}

// flow_bits are those of the outer source, host order, that are the flow's.
static __always_inline __u32 flow_bits(const struct target *t, __u64 hash)
{
	return t->source_bits ? (__u32)(entropy(hash) >> 18) & (__u32)((1ULL << (t->source_bits & 63)) - 1) : 0;
}

static __always_inline void set_outer_ipv4(struct iphdr *ip, const struct target *t, __u16 payload, __u8 class, __u8 proto, __u64 hash)
{
	__u16 length = sizeof(*ip) + payload;
	__u32 bits = flow_bits(t, hash); // those of the address are 0
	__u32 sum = (__u32)t->sum + class + length + proto + (bits >> 16) + (bits & 0xffff);

	*(__be32 *)ip = bpf_htonl(0x45 << 24 | class << 16 | length);
	ip->id = 0;
	ip->frag_off = bpf_htons(OUTER_DONT_FRAGMENT);
	ip->ttl = OUTER_TTL;
	ip->protocol = proto;
	ip->check = bpf_htons(~fold16(sum));
	ip->saddr = t->addrs[0] | bpf_htonl(bits);
	ip->daddr = t->addrs[1];
}

static __always_inline void set_outer_ipv6(struct ipv6hdr *ip6, const struct target *t, __u16 payload, __u8 class, __u8 proto, __u64 hash)
{
	*(__be32 *)ip6 = bpf_htonl(6 << 28 | class << 20);
	ip6->payload_len = bpf_htons(payload);
	ip6->nexthdr = proto;
	ip6->hop_limit = OUTER_TTL;
	__builtin_memcpy(&ip6->saddr, t->addrs, sizeof(t->addrs));
	ip6->saddr.in6_u.u6_addr32[3] |= bpf_htonl(flow_bits(t, hash));
}

// encapsulate puts a target's headers before an IP packet that begins l3 bytes from the frame's beginning. It reports false if there is
// no room, and has changed nothing then.
static __always_inline bool encapsulate(struct xdp_md *ctx, long l3, const struct target *t, __u16 length, __u8 class, bool ipv6,
					__u64 hash)
{
	long grow = (long)sizeof(struct ethhdr) + (t->tag ? sizeof(struct vlan_tag) : 0) + t->overhead - l3;
	__u8 proto = ipv6 ? IPPROTO_IPV6 : IPPROTO_IPIP;

	if (grow && bpf_xdp_adjust_head(ctx, -grow))
		return false;
	void *frame = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = frame;
	struct vlan_tag *tag = (void *)(eth + 1);
	__be16 *type = frame + 2 * ETH_ALEN; // of what follows

	if ((void *)(tag + 1) > end) // cannot be: the packet itself is longer
		return false;
	set_macs(frame, t);
	if (t->tag) {
		eth->h_proto = bpf_htons(ETH_P_8021Q);
		tag->tci = bpf_htons(t->tag);
		type += sizeof(*tag) / sizeof(*type);
	}
	struct iphdr *ip = (void *)(type + 1);
	struct ipv6hdr *ip6 = (void *)(type + 1);

	if ((void *)(ip + 1) > end) // cannot be
		return false;
	if (!t->overhead) {
		*type = ipv6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
		return true;
	}
	bool outer4 = t->overhead < sizeof(struct ipv6hdr);

	if (t->gue_port) {
		struct udphdr *udp = outer4 ? (void *)(ip + 1) : (void *)(ip6 + 1);

		if ((void *)(udp + 1) > end) // cannot be
			return false;
		length += sizeof(*udp);
		proto = IPPROTO_UDP;
		udp->source = bpf_htons(GUE_FIRST_PORT | entropy(hash) >> 50);
		udp->dest = bpf_htons(t->gue_port);
		udp->len = bpf_htons(length);
		udp->check = 0;
	}
	if (outer4) {
		*type = bpf_htons(ETH_P_IP);
		set_outer_ipv4(ip, t, length, class, proto, hash);
		return true;
	}
	if ((void *)(ip6 + 1) > end) // cannot be
		return false;
	*type = bpf_htons(ETH_P_IPV6);
	set_outer_ipv6(ip6, t, length, class, proto, hash);
	return true;
}

#endif
