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
#include "orphan.h"
#include "shed.h"
#include "target.h"

const volatile struct flow_key flow_key;
// The number of this interface in the node's list; one that there is not, if it is to send as others do for it: veth takes frames of
// XDP_TX to its other end, but tells that end only if it has a program too (veth_xdp_flush in drivers/net/veth.c).
const volatile __u32 own_exit;

__u8 fast_on; // packets that arrive here go by the fast path; written by Go

// A packet as the fast path sees it. It holds no pointers, since the verifier looks at the functions below by themselves, and knows
// of none that come from elsewhere: with all in one it would have too much to look at.
struct fast_packet {
	__u64 generation;
	__u64 unsettled_until; // ns
	__u64 disturbed;
	__u64 now;  // ns, up to 10 ms late
	__u64 hash;
	__u64 word; // of its flow, as it was found at; 0: there is none, or it is to be left as it is
	struct word_place at;
	struct address dst;
	__u32 slot;
	__u32 tick;
	__u16 length; // of the IP packet, bytes; 0: it is not a plain one
	__u16 port;   // destination, host order
	__u8 proto;
	__u8 flags;   // TCP: those below
	__u8 class;   // DSCP and ECN
	__u8 ipv6;
	__u8 tagged;  // there is a tag before the IP header
	__u8 orphan;  // no daemon runs
	__u8 goes_on; // it is to forward without one
	__u8 over;    // and none has for longer than it is to go on without
	__u8 action;  // what becomes of packets that cannot be forwarded then
};

enum tcp_flags { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16 };

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
static __always_inline bool within(void *l4, void *end, void *stop, __u8 proto, struct fast_packet *p)
{
	struct tcphdr *tcp = l4;
	struct udphdr *udp = l4;

	if (proto == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > end || tcp->doff < 5 || l4 + tcp->doff * 4 > stop)
			return false;
		p->flags = ((__u8 *)tcp)[13] & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK);
		return true;
	}
	if (proto == IPPROTO_UDP)
		return (void *)(udp + 1) <= end && bpf_ntohs(udp->len) >= sizeof(*udp) && l4 + bounded(udp->len) <= stop;
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
static __always_inline bool takes(const struct target *t, const struct service *s, const struct fast_packet *p)
{
	__u32 age = word_age(p->word, p->tick);
	enum admit_state admit = admit_of(p->slot);

	if (word_state(p->word) == EMPTY || (age ? age : 1) > t->life[word_state(p->word) - PROBATION]) // empty ones are not found
		return false;
	if (p->flags & TCP_SYN && !(p->flags & TCP_ACK))
		return admit == ADMIT_UP;
	if (admit != ADMIT_UP && admit != ADMIT_DRAINING && !(admit == ADMIT_DOWN && s->flags & SERVICE_KEEPS))
		return false;
	return word_state(p->word) == ESTABLISHED || !(s->flags & SERVICE_TCP) || p->orphan ||
	       !(s->flags & SERVICE_SETTLES || p->now < p->unsettled_until);
}

static __always_inline bool fast_ipv4(struct iphdr *ip, void *end, struct fast_packet *p)
{
	struct flow_key key = {flow_key.k0, flow_key.k1};
	__be16 *ports = (__be16 *)(ip + 1);

	if ((void *)(ip + 1) > end || !plain_ipv4(ip))
		return false;
	void *stop = (void *)ip + bounded(ip->tot_len);

	if (stop > end || !within(ports, end, stop, ip->protocol, p))
		return false;
	p->length = bpf_ntohs(ip->tot_len);
	p->port = bpf_ntohs(ports[1]);
	p->proto = ip->protocol;
	p->class = ip->tos;
	p->hash = flow_hash_v4(&key, ip->saddr, ip->daddr, ports[0], ports[1], p->proto);
	return true;
}

static __always_inline bool fast_ipv6(struct ipv6hdr *ip6, void *end, struct fast_packet *p)
{
	struct flow_key key = {flow_key.k0, flow_key.k1};
	__be16 *ports = (__be16 *)(ip6 + 1);

	if ((void *)(ip6 + 1) > end || !plain_ipv6(ip6))
		return false;
	void *stop = (void *)ports + bounded(ip6->payload_len);

	if (stop > end || !within(ports, end, stop, ip6->nexthdr, p))
		return false;
	p->length = bpf_ntohs(ip6->payload_len) + sizeof(*ip6); // of a frame, so it is far below 65,536
	p->port = bpf_ntohs(ports[1]);
	p->proto = ip6->nexthdr;
	p->class = bpf_ntohl(*(__be32 *)ip6) >> 20;
	p->hash = flow_hash_v6(&key, ip6->saddr.in6_u.u6_addr32, ip6->daddr.in6_u.u6_addr32, ports[0], ports[1], p->proto);
	return true;
}

static __always_inline long l3_offset(const struct fast_packet *p)
{
	return p->tagged ? sizeof(struct ethhdr) + sizeof(struct vlan_tag) : sizeof(struct ethhdr);
}

// fast_parse reads a packet, of which family and tag are known, and reports whether it is a plain one. Global functions are verified by
// themselves.
__noinline int fast_parse(struct xdp_md *ctx, struct fast_packet *p)
{
	void *end = (void *)(long)ctx->data_end, *l3 = (void *)(long)ctx->data;

	if (!p)
		return 0;
	l3 += l3_offset(p);
	return p->ipv6 ? fast_ipv6(l3, end, p) : fast_ipv4(l3, end, p);
}

// fast_find reports whether a packet goes by the fast path: it is a plain one to a service that does, it opens and ends nothing, and its
// flow has a word that says where it goes.
__noinline int fast_find(struct fast_packet *p)
{
	if (!p || (p->flags & (TCP_FIN | TCP_SYN | TCP_RST) && !p->orphan))
		return 0;
	p->word = find_word(p->hash, &p->at);
	if (!p->word)
		return 0;
	p->tick = tick_at(p->now);
	p->slot = word_slot(p->word);
	struct target *t = target_of(p->generation, p->slot);

	if (!t || t->exit == EXIT_NONE || p->length > t->max_len)
		return 0;
	struct service *s = service_of(p->generation, t->service);

	// Of a false hit, a flow of another service with the same fingerprint, the workers know what it is.
	return s && serves(s, &p->dst, p->proto, p->port) && takes(t, s, p);
}

// orphan_find reports whether a packet without a word that says where it goes can go by the lookup table of its service, while no daemon
// runs.
__noinline int orphan_find(struct fast_packet *p)
{
	if (!p)
		return 0;
	struct destination to = {.bits = DESTINATION_BITS, .vip = p->dst, .proto = p->proto, .port = bpf_htons(p->port)};
	__u32 *number = bpf_map_lookup_elem(&served, &to);
	struct service *s = number ? service_of(p->generation, *number) : NULL;

	if (!s || s->flags & SERVICE_BY_SOURCE || !serves(s, &p->dst, p->proto, p->port))
		return 0;
	struct orphan o = {.generation = p->generation, .number = *number, .length = p->length};

	if (!by_table(&o, p->hash))
		return 0;
	p->word = 0;
	p->slot = o.slot;
	return 1;
}

// tells reports whether a packet tells that its source has proved its address: Worker.tellsSource.
static __always_inline bool tells(const struct fast_packet *p)
{
	__u32 offset = p->hash & 7;

	return p->proto == IPPROTO_TCP && word_state(p->word) != CLOSING && !p->disturbed && !p->orphan &&
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
// means that it could not be sent, and is as it was, XDP_DROP that there is no such exit.
__noinline int fast_forward(struct xdp_md *ctx, struct fast_packet *p)
{
	void *frame = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	long size = end - frame;

	if (!p)
		return XDP_PASS;
	struct target *t = target_of(p->generation, p->slot);
	long l3 = l3_offset(p);

	barrier_var(size); // the compiler would turn the sum round, and subtract from a pointer
	long padding = size - l3 - p->length;

	if (!t)
		return XDP_PASS;
	bool syn = p->flags & TCP_SYN && !(p->flags & TCP_ACK); // only while no daemon runs
	bool renews = p->word && !syn && (word_tick(p->word) != p->tick || p->flags & (TCP_FIN | TCP_RST));

	if (renews && tells(p))
		prove_source(frame + l3, end, p->ipv6);
	if (padding > 0 && bpf_xdp_adjust_tail(ctx, -padding))
		return XDP_PASS;
	if (!encapsulate(ctx, l3, t, p->length, p->class, p->ipv6, p->hash))
		return XDP_PASS;
	if (renews)
		refresh_word(&p->at, p->word, p->tick, p->flags & (TCP_FIN | TCP_RST));
	int action = t->exit == own_exit ? XDP_TX : bpf_redirect_map(&exits, t->exit, XDP_DROP);

	if (action != XDP_DROP)
		count_slot(p->slot, p->length);
	return action;
}

#endif
