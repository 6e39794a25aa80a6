/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_PLAIN_H
#define SLUICE_PLAIN_H

// Packets as most are: a whole datagram of TCP or UDP, without options and extension headers, with nothing wrong and nothing special
// about it. Of these the fast path knows all that it needs.

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "flowhash.h"
#include "header.h"

const volatile struct flow_key flow_key;

enum tcp_flags { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16 };

// What a plain packet says.
struct plain {
	__u64 hash; // of its flow
	struct address dst;
	__u16 length; // of the IP packet, bytes
	__u16 port;   // destination, host order
	__u8 proto;
	__u8 flags; // TCP: those below
	__u8 class; // DSCP and ECN
};

// plain_ipv4 and plain_ipv6 report whether there is nothing special about an IP header, which is known to be in the frame. They
// are the plain part of packet.Parse.
static __always_inline bool plain_ipv4(const struct iphdr *ip)
{
	const __u32 *w = (const __u32 *)ip;
	__u64 sum = (__u64)w[0] + w[1] + w[2] + w[3] + w[4];
	__u8 net = bpf_ntohl(ip->saddr) >> 24;

	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (w[0] & 0xff) == 0x45 && !(ip->frag_off & bpf_htons(IP_OFFSET | IP_MORE)) && ip->ttl > 1 && sum == 0xffff &&
	       net != 0 && net != 127 && net < 224 && ip->saddr != ip->daddr;
}

static __always_inline bool plain_ipv6(const struct ipv6hdr *ip6)
{
	const __u32 *src = ip6->saddr.in6_u.u6_addr32, *dst = ip6->daddr.in6_u.u6_addr32;

	// ::/64, where all that is special has its place, and ff00::/8.
	if ((!src[0] && !src[1]) || (!dst[0] && !dst[1]) || (src[0] & 0xff) == 0xff)
		return false;
	return ip6->version == 6 && ip6->hop_limit > 1 &&
	       (src[0] != dst[0] || src[1] != dst[1] || src[2] != dst[2] || src[3] != dst[3]);
}

// within reports whether the transport header at l4 is whole and lies within the packet, which ends at stop.
static __always_inline bool within(void *l4, void *end, void *stop, __u8 proto, struct plain *p)
{
	struct tcphdr *tcp = l4;
	struct udphdr *udp = l4;

	if (proto == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > end || tcp->doff < 5 || l4 + tcp->doff * 4 > stop)
			return false;
		p->flags = ((__u8 *)tcp)[13] & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK);
		return true;
	}
	p->flags = 0;
	if (proto == IPPROTO_UDP)
		return (void *)(udp + 1) <= end && bpf_ntohs(udp->len) >= sizeof(*udp) && l4 + bounded(udp->len) <= stop;
	return false;
}

static __always_inline bool parse_ipv4(struct iphdr *ip, void *end, struct plain *p)
{
	struct flow_key key = {flow_key.k0, flow_key.k1};
	__be16 *ports = (__be16 *)(ip + 1);

	if ((void *)(ip + 1) > end || !plain_ipv4(ip))
		return false;
	void *stop = (void *)ip + bounded(ip->tot_len);

	if (stop > end || !within(ports, end, stop, ip->protocol, p))
		return false;
	set_ipv4(&p->dst, ip->daddr);
	p->length = bpf_ntohs(ip->tot_len);
	p->port = bpf_ntohs(ports[1]);
	p->proto = ip->protocol;
	p->class = ip->tos;
	p->hash = flow_hash_v4(&key, ip->saddr, ip->daddr, ports[0], ports[1], p->proto);
	return true;
}

static __always_inline bool parse_ipv6(struct ipv6hdr *ip6, void *end, struct plain *p)
{
	struct flow_key key = {flow_key.k0, flow_key.k1};
	__be16 *ports = (__be16 *)(ip6 + 1);

	if ((void *)(ip6 + 1) > end || !plain_ipv6(ip6))
		return false;
	void *stop = (void *)ports + bounded(ip6->payload_len);

	if (stop > end || !within(ports, end, stop, ip6->nexthdr, p) || !set_ipv6(&p->dst, &ip6->daddr))
		return false;
	p->length = bpf_ntohs(ip6->payload_len) + sizeof(*ip6); // of a frame, so it is far below 65,536
	p->port = bpf_ntohs(ports[1]);
	p->proto = ip6->nexthdr;
	p->class = bpf_ntohl(*(__be32 *)ip6) >> 20;
	p->hash = flow_hash_v6(&key, ip6->saddr.in6_u.u6_addr32, ip6->daddr.in6_u.u6_addr32, ports[0], ports[1], p->proto);
	return true;
}

// parse_plain reads a packet that begins at l3, and reports whether it is a plain one.
static __always_inline bool parse_plain(void *l3, void *end, __u32 shape, struct plain *p)
{
	return shape & FRAME_IPV6 ? parse_ipv6(l3, end, p) : parse_ipv4(l3, end, p);
}

// parse_apart is parse_plain where there is time for a call but no more stack. A global function is verified by itself.
__noinline int parse_apart(struct xdp_md *ctx, __u32 shape, struct plain *p)
{
	void *end = (void *)(long)ctx->data_end, *l3 = (void *)(long)ctx->data + l3_offset(shape);

	return p && parse_plain(l3, end, shape, p);
}

#endif
