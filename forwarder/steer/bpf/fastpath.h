/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_FASTPATH_H
#define SLUICE_FASTPATH_H

// The fast path: plain packets of flows that the workers have decided about are forwarded here, as the workers would. What is
// special in any way is theirs: so whenever something below is not as most packets have it, the answer is that this packet is
// not one for the fast path, and nothing has been changed.

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "encap.h"
#include "flowhash.h"
#include "flowtable.h"
#include "header.h"
#include "shed.h"
#include "target.h"

const volatile struct flow_key flow_key;
const volatile __u32 own_exit; // the number of this interface in the node's list

__u8 fast_on; // packets that arrive here go by the fast path; written by Go

// A packet as the fast path sees it. It holds no pointers, since the verifier looks at the functions below by themselves, and knows
// of none that come from elsewhere: with all in one it would have too much to look at.
struct fast_packet {
	__u64 generation;
	__u64 unsettled_until; // ns
	__u64 disturbed;
	__u64 hash;
	__u64 word; // of its flow, as it was found at
	struct word_place at;
	struct address dst;
	__u32 tick;
	__u16 length; // of the IP packet, bytes; 0: it is not a plain one
	__u16 port;   // destination, host order
	__u8 proto;
	__u8 class;   // DSCP and ECN
	__u8 ipv6;
	__u8 tagged;  // there is a tag before the IP header
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

// within reports whether the transport header at l4 is whole, lies within the packet, which ends at stop, and opens or ends nothing.
static __always_inline bool within(void *l4, void *end, void *stop, __u8 proto)
{
	struct tcphdr *tcp = l4;
	struct udphdr *udp = l4;

	if (proto == IPPROTO_TCP)
		return (void *)(tcp + 1) <= end && tcp->doff >= 5 && l4 + tcp->doff * 4 <= stop && !tcp->syn && !tcp->fin && !tcp->rst;
	if (proto == IPPROTO_UDP)
		return (void *)(udp + 1) <= end && bpf_ntohs(udp->len) >= sizeof(*udp) && l4 + bpf_ntohs(udp->len) <= stop;
	return false;
}

// serves reports whether a packet is one to a service.
static __always_inline bool serves(const struct service *s, const struct address *dst, __u8 proto, __u16 port)
{
	if (s->proto != proto || s->vip.word[0] != dst->word[0] || s->vip.word[1] != dst->word[1] ||
	    s->vip.word[2] != dst->word[2] || s->vip.word[3] != dst->word[3])
		return false;
	for (int i = 0; i < SERVICE_RANGES; i++) {
		if (i >= s->ranges)
			return false;
		if (port >= s->ports[i].first && port <= s->ports[i].last)
			return true;
	}
	return false;
}

// takes reports whether the word of a packet's flow says where it goes now.
static __always_inline bool takes(const struct target *t, const struct service *s, __u64 word, __u32 tick, __u64 unsettled_until)
{
	__u32 age = word_age(word, tick);
	enum admit_state admit = admit_of(word_slot(word));

	if ((age ? age : 1) > t->life[word_state(word)])
		return false;
	if (admit != ADMIT_UP && admit != ADMIT_DRAINING && !(admit == ADMIT_DOWN && s->flags & SERVICE_KEEPS))
		return false;
	return word_state(word) == ESTABLISHED || !(s->flags & SERVICE_TCP) ||
	       !(s->flags & SERVICE_SETTLES || bpf_ktime_get_coarse_ns() < unsettled_until);
}

// fast_ipv4 and fast_ipv6 read a packet whose IP header is in the frame.
static __always_inline void fast_ipv4(struct iphdr *ip, void *end, struct fast_packet *p)
{
	struct flow_key key = {flow_key.k0, flow_key.k1};
	__be16 *ports = (__be16 *)(ip + 1);
	void *stop = (void *)ip + bpf_ntohs(ip->tot_len);

	if (!plain_ipv4(ip) || stop > end || !within(ports, end, stop, ip->protocol))
		return;
	p->length = bpf_ntohs(ip->tot_len);
	p->port = bpf_ntohs(ports[1]);
	p->proto = ip->protocol;
	p->class = ip->tos;
	p->hash = flow_hash_v4(&key, ip->saddr, ip->daddr, ports[0], ports[1], p->proto);
}

static __always_inline void fast_ipv6(struct ipv6hdr *ip6, void *end, struct fast_packet *p)
{
	struct flow_key key = {flow_key.k0, flow_key.k1};
	__be16 *ports = (__be16 *)(ip6 + 1);
	void *stop = (void *)ports + bpf_ntohs(ip6->payload_len);

	if (!plain_ipv6(ip6) || stop > end || !within(ports, end, stop, ip6->nexthdr))
		return;
	p->length = bpf_ntohs(ip6->payload_len) + sizeof(*ip6); // of a frame, so it is far below 65,536
	p->port = bpf_ntohs(ports[1]);
	p->proto = ip6->nexthdr;
	p->class = bpf_ntohl(*(__be32 *)ip6) >> 20;
	p->ipv6 = 1;
	p->hash = flow_hash_v6(&key, ip6->saddr.in6_u.u6_addr32, ip6->daddr.in6_u.u6_addr32, ports[0], ports[1], p->proto);
}

// fast_find reports whether a packet goes by the fast path: it is a plain one to a service that does, and its flow has a word that says
// where it goes. Global functions are verified by themselves.
__noinline int fast_find(struct fast_packet *p)
{
	if (!p)
		return 0;
	p->word = find_word(p->hash, &p->at);
	if (!p->word)
		return 0;
	p->tick = tick_now();
	struct target *t = target_of(p->generation, word_slot(p->word));

	if (!t || t->exit == EXIT_NONE || p->length > t->max_len)
		return 0;
	struct service *s = service_of(p->generation, t->service);

	// Of a false hit, a flow of another service with the same fingerprint, the workers know what it is.
	return s && serves(s, &p->dst, p->proto, p->port) && takes(t, s, p->word, p->tick, p->unsettled_until);
}

// tells reports whether a packet tells that its source has proved its address: Worker.tellsSource.
static __always_inline bool tells(const struct fast_packet *p)
{
	__u32 offset = p->hash & 7;

	return p->proto == IPPROTO_TCP && word_state(p->word) != CLOSING && !p->disturbed &&
	       (word_state(p->word) != ESTABLISHED || (word_tick(p->word) + offset) >> 3 != (p->tick + offset) >> 3);
}

// prove_source notes the source of a packet whose IP header begins at l3.
static __always_inline void prove_source(void *l3, void *end, bool ipv6)
{
	struct ipv6hdr *ip6 = l3;
	struct iphdr *ip = l3;
	struct address src;

	if (ipv6) {
		if ((void *)(ip6 + 1) > end || !set_ipv6(&src, &ip6->saddr)) // cannot be
			return;
	} else {
		if ((void *)(ip + 1) > end) // cannot be
			return;
		set_ipv4(&src, ip->saddr);
	}
	prove(&src);
}

// fast_forward sends a packet that fast_find has found, and counts it for its slot. It returns what is to become of the frame; XDP_PASS
// means that it could not be sent, and is as it was.
__noinline int fast_forward(struct xdp_md *ctx, struct fast_packet *p)
{
	void *frame = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	long size = end - frame;

	if (!p)
		return XDP_PASS;
	struct target *t = target_of(p->generation, word_slot(p->word));
	long l3 = p->tagged ? sizeof(struct ethhdr) + sizeof(struct vlan_tag) : sizeof(struct ethhdr);

	barrier_var(size); // the compiler would turn the sum round, and subtract from a pointer
	long padding = size - l3 - p->length;

	if (!t)
		return XDP_PASS;
	if (word_tick(p->word) != p->tick && tells(p))
		prove_source(frame + l3, end, p->ipv6);
	if (padding > 0 && bpf_xdp_adjust_tail(ctx, -padding))
		return XDP_PASS;
	if (!encapsulate(ctx, l3, t, p->length, p->class, p->ipv6, p->hash))
		return XDP_PASS;
	if (word_tick(p->word) != p->tick)
		refresh_word(&p->at, p->word, p->tick);
	count_slot(word_slot(p->word), p->length);
	return t->exit == own_exit ? XDP_TX : bpf_redirect_map(&exits, t->exit, XDP_DROP);
}

#endif
