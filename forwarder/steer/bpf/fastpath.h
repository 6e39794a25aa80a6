/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_FASTPATH_H
#define SLUICE_FASTPATH_H

// The fast path: plain packets of flows that the workers have decided about are forwarded here, as the workers would. What is
// special in any way is theirs: so whenever something below is not as most packets have it, the answer is that this packet is
// not one for the fast path, and nothing has been changed.

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "encap.h"
#include "flowtable.h"
#include "header.h"
#include "plain.h"
#include "shed.h"
#include "target.h"

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
	const struct plain *is;
	struct fast_state *state;
	__u64 generation; // of the snapshot that it goes by
	__u64 now;        // ns, see fast_now
	__u64 word;       // of its flow, as it was found; 0: there is none, or it is to be left as it is
	__u64 *at;        // where that is
	__u64 place;      // its number in the table
	struct target *target;
	__u32 slot;
	__u32 tick;
	bool orphan; // no daemon runs
};

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
	if (p->is->flags & TCP_SYN && !(p->is->flags & TCP_ACK))
		return admit == ADMIT_UP;
	if (admit != ADMIT_UP && admit != ADMIT_DRAINING && !(admit == ADMIT_DOWN && s->flags & SERVICE_KEEPS))
		return false;
	return word_state(p->word) == ESTABLISHED || !(s->flags & SERVICE_TCP) || p->orphan ||
	       !(s->flags & SERVICE_SETTLES || p->now < READ_ONCE(p->state->unsettled_until));
}

// fast_find reports whether a plain packet goes by the fast path: it opens and ends nothing, and its flow has a word that says where it
// goes, to a backend of a service that the fast path forwards for.
static __always_inline bool fast_find(struct fast_packet *p)
{
	if (p->is->flags & (TCP_FIN | TCP_SYN | TCP_RST) && !p->orphan)
		return false;
	p->at = find_word(p->is->hash, &p->place, &p->word);
	if (!p->at)
		return false;
	p->tick = tick_at(p->now);
	p->slot = word_slot(p->word);
	p->target = target_of(p->generation, p->slot);
	if (!p->target || p->target->exit == EXIT_NONE || p->is->length > p->target->max_len)
		return false;
	struct service *s = service_of(p->generation, p->target->service);

	// Of a false hit, a flow of another service with the same fingerprint, the workers know what it is.
	return s && serves(s, &p->is->dst, p->is->proto, p->is->port) && takes(s, p);
}

// tells reports whether a packet tells that its source has proved its address: Worker.tellsSource.
static __always_inline bool tells(const struct fast_packet *p)
{
	__u32 offset = p->is->hash & 7;

	return p->is->proto == IPPROTO_TCP && word_state(p->word) != CLOSING && !READ_ONCE(p->state->disturbed) && !p->orphan &&
	       (word_state(p->word) != ESTABLISHED || (word_tick(p->word) + offset) >> 3 != (p->tick + offset) >> 3);
}

// note_source notes the source of a packet: as one that has proved its address, or as a sample of who sends packets.
__noinline int note_source(struct xdp_md *ctx, __u32 shape, bool proved)
{
	void *end = (void *)(long)ctx->data_end, *l3 = (void *)(long)ctx->data + l3_offset(shape);
	struct ipv6hdr *ip6 = l3;
	struct iphdr *ip = l3;
	struct address src;

	if (shape & FRAME_IPV6) {
		if ((void *)(ip6 + 1) > end || !set_ipv6(&src, &ip6->saddr)) // cannot be
			return 0;
	} else {
		if ((void *)(ip + 1) > end) // cannot be
			return 0;
		set_ipv4(&src, ip->saddr);
	}
	if (proved)
		prove(&src);
	else
		bpf_ringbuf_output(&samples, &src, sizeof(src), BPF_RB_NO_WAKEUP);
	return 0;
}

// fast_forward sends a packet to its target, and counts it for its slot. It returns what is to become of the frame; XDP_PASS means that it
// could not be sent, and is as it was, XDP_DROP that there is no such exit.
static __always_inline int fast_forward(struct xdp_md *ctx, __u32 shape, const struct fast_packet *p)
{
	void *frame = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	long size = end - frame, l3 = l3_offset(shape);
	bool ipv6 = shape & FRAME_IPV6;

	barrier_var(size); // the compiler would turn the sum round, and subtract from a pointer
	long padding = size - l3 - p->is->length;
	bool syn = p->is->flags & TCP_SYN && !(p->is->flags & TCP_ACK); // only while no daemon runs
	bool renews = p->word && !syn && (word_tick(p->word) != p->tick || p->is->flags & (TCP_FIN | TCP_RST));

	struct slot_count *count = count_of(p->slot);

	if (!count) // cannot be
		return XDP_PASS;
	if (renews && tells(p))
		note_source(ctx, shape, true);
	if (!p->orphan && is_sample(count->packets))
		note_source(ctx, shape, false);
	if (padding > 0 && bpf_xdp_adjust_tail(ctx, -padding))
		return XDP_PASS;
	if (!encapsulate(ctx, l3, p->target, p->is->length, p->is->class, ipv6, p->is->hash))
		return XDP_PASS;
	if (renews)
		refresh_word(p->at, p->word, p->tick, p->is->flags & (TCP_FIN | TCP_RST));
	int action = p->target->exit == own_exit ? XDP_TX : bpf_redirect_map(&exits, p->target->exit, XDP_DROP);

	if (action != XDP_DROP) {
		count->packets++;
		count->bytes += p->is->length;
	}
	return action;
}

#endif
