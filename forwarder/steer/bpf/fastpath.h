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

// What this CPU asked for the time last. To ask is a call, and calls are what the fast path spends much of its time on; so it asks once a
// jiffy.
struct clock {
	__u64 jiffy;
	__u64 now; // ns
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct clock);
} clocks SEC(".maps");

// fast_now returns the time in ns, up to two jiffies late.
static __always_inline __u64 fast_now(void)
{
	__u32 zero = 0;
	__u64 jiffy = bpf_jiffies64();
	struct clock *c = bpf_map_lookup_elem(&clocks, &zero);

	if (!c) // cannot be
		return bpf_ktime_get_coarse_ns();
	if (c->jiffy != jiffy) {
		c->now = bpf_ktime_get_coarse_ns();
		c->jiffy = jiffy;
	}
	return c->now;
}

__u8 fast_on; // packets that arrive here go by the fast path; written by Go

// A packet as the fast path sees it.
struct fast_packet {
	struct fast_state *state;
	__u64 generation; // of the snapshot that it goes by
	__u64 now;        // ns, see fast_now
	__u64 hash;
	__u64 word; // of its flow, as it was found; 0: there is none, or it is to be left as it is
	__u64 *at;  // where that is
	struct target *target;
	struct address dst;
	__u32 slot;
	__u32 tick;
	__u16 length; // of the IP packet, bytes
	__u16 port;   // destination, host order
	__u8 proto;
	__u8 flags; // TCP: those below
	__u8 class; // DSCP and ECN
	bool orphan; // no daemon runs
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
	p->flags = 0;
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
static __always_inline bool takes(const struct service *s, const struct fast_packet *p)
{
	__u32 age = word_age(p->word, p->tick);
	enum admit_state admit = admit_of(p->slot);

	if (word_state(p->word) == EMPTY || (age ? age : 1) > p->target->life[word_state(p->word) - PROBATION]) // empty ones are not found
		return false;
	if (p->flags & TCP_SYN && !(p->flags & TCP_ACK))
		return admit == ADMIT_UP;
	if (admit != ADMIT_UP && admit != ADMIT_DRAINING && !(admit == ADMIT_DOWN && s->flags & SERVICE_KEEPS))
		return false;
	return word_state(p->word) == ESTABLISHED || !(s->flags & SERVICE_TCP) || p->orphan ||
	       !(s->flags & SERVICE_SETTLES || p->now < READ_ONCE(p->state->unsettled_until));
}

static __always_inline bool parse_ipv4(struct iphdr *ip, void *end, struct fast_packet *p)
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

static __always_inline bool parse_ipv6(struct ipv6hdr *ip6, void *end, struct fast_packet *p)
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

// fast_parse reads a packet that begins at l3, and reports whether it is a plain one.
static __always_inline bool fast_parse(void *l3, void *end, __u32 shape, struct fast_packet *p)
{
	return shape & FRAME_IPV6 ? parse_ipv6(l3, end, p) : parse_ipv4(l3, end, p);
}

// fast_find reports whether a plain packet goes by the fast path: it opens and ends nothing, and its flow has a word that says where it
// goes, to a backend of a service that the fast path forwards for.
static __always_inline bool fast_find(struct fast_packet *p)
{
	if (p->flags & (TCP_FIN | TCP_SYN | TCP_RST) && !p->orphan)
		return false;
	p->at = find_word(p->hash, &p->word);
	if (!p->at)
		return false;
	p->tick = tick_at(p->now);
	p->slot = word_slot(p->word);
	p->target = target_of(p->generation, p->slot);
	if (!p->target || p->target->exit == EXIT_NONE || p->length > p->target->max_len)
		return false;
	struct service *s = service_of(p->generation, p->target->service);

	// Of a false hit, a flow of another service with the same fingerprint, the workers know what it is.
	return s && serves(s, &p->dst, p->proto, p->port) && takes(s, p);
}

// tells reports whether a packet tells that its source has proved its address: Worker.tellsSource.
static __always_inline bool tells(const struct fast_packet *p)
{
	__u32 offset = p->hash & 7;

	return p->proto == IPPROTO_TCP && word_state(p->word) != CLOSING && !READ_ONCE(p->state->disturbed) && !p->orphan &&
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

// fast_forward sends a packet to its target, and counts it for its slot. It returns what is to become of the frame; XDP_PASS means that it
// could not be sent, and is as it was, XDP_DROP that there is no such exit.
static __always_inline int fast_forward(struct xdp_md *ctx, __u32 shape, const struct fast_packet *p)
{
	void *frame = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	long size = end - frame, l3 = l3_offset(shape);
	bool ipv6 = shape & FRAME_IPV6;

	barrier_var(size); // the compiler would turn the sum round, and subtract from a pointer
	long padding = size - l3 - p->length;
	bool syn = p->flags & TCP_SYN && !(p->flags & TCP_ACK); // only while no daemon runs
	bool renews = p->word && !syn && (word_tick(p->word) != p->tick || p->flags & (TCP_FIN | TCP_RST));

	if (renews && tells(p))
		prove_source(frame + l3, end, ipv6);
	if (padding > 0 && bpf_xdp_adjust_tail(ctx, -padding))
		return XDP_PASS;
	if (!encapsulate(ctx, l3, p->target, p->length, p->class, ipv6, p->hash))
		return XDP_PASS;
	if (renews)
		refresh_word(p->at, p->word, p->tick, p->flags & (TCP_FIN | TCP_RST));
	int action = p->target->exit == own_exit ? XDP_TX : bpf_redirect_map(&exits, p->target->exit, XDP_DROP);

	if (action != XDP_DROP)
		count_slot(p->slot, p->length);
	return action;
}

// find_by_table finds the target of a packet without a word that says where it goes, by the lookup table of its service, and reports whether
// there is one.
static __always_inline bool find_by_table(struct fast_packet *p)
{
	struct destination to = {.bits = DESTINATION_BITS, .vip = p->dst, .proto = p->proto, .port = bpf_htons(p->port)};
	__u32 *number = bpf_map_lookup_elem(&served, &to);
	struct service *s = number ? service_of(p->generation, *number) : NULL;

	if (!s || s->flags & SERVICE_BY_SOURCE || !serves(s, &p->dst, p->proto, p->port))
		return false;
	struct orphan o = {.generation = p->generation, .number = *number, .length = p->length};

	if (!by_table(&o, p->hash))
		return false;
	p->word = 0;
	p->slot = o.slot;
	p->target = target_of(p->generation, p->slot);
	return p->target;
}

// forward_orphan forwards a packet while no daemon runs. It returns what fast_forward does, and XDP_PASS too if the packet is not one that can
// be forwarded without, or none has run for too long. A global function is verified by itself.
__noinline int forward_orphan(struct xdp_md *ctx, __u32 shape)
{
	void *end = (void *)(long)ctx->data_end, *l3 = (void *)(long)ctx->data + l3_offset(shape);
	struct fast_state *state = fast_state();

	if (!state) // cannot be
		return XDP_PASS;
	struct fast_packet p = {.state = state, .generation = READ_ONCE(state->generation), .now = fast_now(), .orphan = true};
	__u64 alive_until = READ_ONCE(state->alive_until);

	if (!p.generation || (p.now >= alive_until && p.now - alive_until >= READ_ONCE(state->orphan_time)) ||
	    !fast_parse(l3, end, shape, &p) || !(fast_find(&p) || find_by_table(&p)))
		return XDP_PASS;
	return fast_forward(ctx, shape, &p);
}

#endif
