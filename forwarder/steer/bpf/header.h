/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_HEADER_H
#define SLUICE_HEADER_H

// What there is to read in an IP header, of the packet itself or of one inside it (tunnelled, or quoted by ICMP).

#include <stdbool.h>
#include <linux/types.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>

// A 128-bit address in network order; IPv4 as v4-mapped, ::ffff:a.b.c.d.
struct address {
	__u32 word[4];
};

static __always_inline void set_ipv4(struct address *a, __be32 ipv4)
{
	a->word[0] = 0;
	a->word[1] = 0;
	a->word[2] = bpf_htonl(0xffff);
	a->word[3] = ipv4;
}

// set_ipv6 refuses v4-mapped addresses: they are none on the wire (RFC 4291, 2.5.5.2), but name IPv4 ones in the maps.
static __always_inline bool set_ipv6(struct address *a, const struct in6_addr *ipv6)
{
	a->word[0] = ipv6->in6_u.u6_addr32[0];
	a->word[1] = ipv6->in6_u.u6_addr32[1];
	a->word[2] = ipv6->in6_u.u6_addr32[2];
	a->word[3] = ipv6->in6_u.u6_addr32[3];
	return a->word[0] || a->word[1] || a->word[2] != bpf_htonl(0xffff);
}

// bounded is bpf_ntohs for a length that is added to a pointer into the packet: some verifiers know nothing of a number whose bytes were
// swapped, and compilers leave out what they know to be done.
static __always_inline __u64 bounded(__be16 length)
{
	__u64 n = bpf_ntohs(length);

	asm volatile("%0 &= 0xffff" : "+r"(n));
	return n;
}

#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x)) // of what others write meanwhile

struct vlan_tag {
	__be16 tci;
	__be16 proto;
};

// What a frame is like, for functions that are verified by themselves: to these, pointers into it cannot be passed.
enum frame_shape { FRAME_IPV6 = 1, FRAME_TAGGED = 2 };

// l3_offset returns where a frame's IP header begins.
static __always_inline long l3_offset(__u32 shape)
{
	return sizeof(struct ethhdr) + (shape & FRAME_TAGGED ? sizeof(struct vlan_tag) : 0);
}

enum part {
	WHOLE, // no fragment
	FIRST, // the fragment that has the ports
	LATER, // a further one
};

struct header {
	struct address src;
	struct address dst;
	void *next;     // what follows; not yet known to be in the frame
	__u32 id;       // of a fragment's datagram, in network order
	enum part part;
	__u8 proto;     // of what follows
};

#define IP_OFFSET 0x1fff // of a fragment, in units of eight bytes
#define IP_MORE 0x2000	 // more fragments follow

// read_ipv4 reads the header at ip, options included. It reports false if there is none.
static __always_inline bool read_ipv4(struct iphdr *ip, void *end, struct header *h)
{
	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return false;
	set_ipv4(&h->src, ip->saddr);
	set_ipv4(&h->dst, ip->daddr);
	h->next = (void *)ip + ip->ihl * 4;
	h->proto = ip->protocol;
	h->id = ip->id;
	h->part = ip->frag_off & bpf_htons(IP_OFFSET) ? LATER : ip->frag_off & bpf_htons(IP_MORE) ? FIRST : WHOLE;
	return true;
}

struct fragment_header {
	__u8 nexthdr;
	__u8 reserved;
	__be16 offset; // and in the lowest bit, whether more follow
	__be32 id;
};

// read_ipv6 reads the header at ip6 and a fragment header that follows it; other extension headers are left alone, and are
// what follows then. A fragment that is all of its datagram (RFC 6946) is none.
static __always_inline bool read_ipv6(struct ipv6hdr *ip6, void *end, struct header *h)
{
	struct fragment_header *f = (void *)(ip6 + 1);

	if ((void *)(ip6 + 1) > end || ip6->version != 6)
		return false;
	if (!set_ipv6(&h->src, &ip6->saddr) || !set_ipv6(&h->dst, &ip6->daddr))
		return false;
	h->next = f;
	h->proto = ip6->nexthdr;
	h->id = 0;
	h->part = WHOLE;
	if (h->proto == IPPROTO_FRAGMENT) {
		if ((void *)(f + 1) > end)
			return false;
		h->next = f + 1;
		h->proto = f->nexthdr;
		h->id = f->id;
		h->part = f->offset & bpf_htons(0xfff8) ? LATER : f->offset & bpf_htons(1) ? FIRST : WHOLE;
	}
	return true;
}

#endif
