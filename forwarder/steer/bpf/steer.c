// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
//
// The steering program. It runs on every frame an interface receives, before the kernel's stack sees it. What is addressed
// to this interface's own MAC, and has the tag of its VLAN or none if it has no VLAN, goes
//
//   destined to a VIP, from a banned source (ban.h)     → dropped and counted
//   or one that the lists deny (acl.h)                  → the same
//   or that is shed, since workers cannot take all      → the same
//   (shed.h)
//   of a flow that the workers have decided about       → forwarded from here, as they would (fastpath.h)
//   destined to a VIP, else                             → to the AF_XDP socket of the frame's queue; dropped and counted
//                                                          if the queue has none
//   a reply of a NAT backend, or about one (reply.h)    → the same
//   a packet to a VIP in a tunnel that begins or ends   → dropped and counted: it would go round in circles
//   at this node (loop.h)
//   everything else (ARP, BGP, SSH, health probes …)    → to the kernel's stack, untouched
//
// Only what decides that is looked at: for a VIP the destination, and the source and port where sources are refused. Whether
// the packet is well formed is the worker's question, so that every bad packet ends under a reason in one place.

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "acl.h"
#include "ban.h"
#include "fastpath.h"
#include "header.h"
#include "loop.h"
#include "orphan.h"
#include "reply.h"
#include "shed.h"

// What one CPU counted, without what the fast path has sent, which is counted for slots. Always to_vips + replies = redirected +
// no_exit + no_daemon + no_socket + loops + denied + banned + shed.
struct counters {
	__u64 to_vips;    // packets whose destination is a VIP; those in a loop, of which it is the inner destination, included
	__u64 replies;    // packets of NAT backends, and ICMP errors about packets to them
	__u64 loops;      // dropped because they went round in circles
	__u64 redirected; // given to a socket
	__u64 no_socket;  // dropped because their queue has no socket
	__u64 denied;     // dropped because a list denies their source
	__u64 banned;     // dropped because their source is banned
	__u64 shed;       // dropped because the workers cannot take all
	__u64 no_exit;    // not sent by the fast path because the interface that they were to leave by is gone
	__u64 no_daemon;  // not forwarded because no daemon runs, see orphan_action
	__u64 orphaned;   // sent by the fast path while no daemon ran
};

// The set of VIPs; shared by all interfaces, written by Go.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); // set by the loader
	__type(key, struct address);
	__type(value, __u8); // unused
} vips SEC(".maps");

struct prefix {
	__u32 bits; // of the 128 of the address
	struct address addr;
};

// The node's own addresses: what it has, and what it uses as source of outer headers. Shared by all interfaces, written by
// Go.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct prefix);
	__type(value, __u8); // unused
} own SEC(".maps");

// Shared by all interfaces.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} stats SEC(".maps");

// Queue → AF_XDP socket; one map an interface. The kernel removes a socket that closes.
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1); // set by the loader
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

// What refuses packets to VIPs.
enum {
	BY_BANS = 1,  // bans is not empty
	BY_ACL = 2,   // acl is not empty
	BY_LISTS = 4, // and neither is acl_destinations
	BY_SHED = 8,  // shed is not empty
};

// What to look for; shared by all interfaces, written by Go.
struct watched {
	__u8 replies;   // reply_sources is not empty
	__u8 own;       // own is not empty
	__u16 gue_port; // of GUE in UDP, host order; 0: none
	__u32 refusals; // the bits above
	struct ban_masks ban_masks;
};

struct watched watched SEC(".data.shared");

// The interface's MAC: the six bytes in frame order in the low 48 bits of a little-endian word, written by Go.
__u64 own_mac;

// How many receive queues have a socket as long as there is a daemon, from 0 on; written by Go.
__u32 taken;

// The interface's VLAN; 0: frames without a tag, or with one that has only a priority.
const volatile __u16 vlan;

#define VLAN_ID 0x0fff

// own_frame reports whether a frame is addressed to this interface. A frame for another host gets here when the NIC is
// promiscuous (tcpdump) or the switch floods. The stack ignores such frames; taking them would forward packets twice,
// and round in circles between two nodes when the rewritten frame is flooded again.
static __always_inline bool own_frame(const struct ethhdr *eth)
{
	const __u16 *dst = (const __u16 *)eth->h_dest;

	return ((__u64)dst[0] | (__u64)dst[1] << 16 | (__u64)dst[2] << 32) == own_mac;
}

static __always_inline bool is_own(const struct address *addr)
{
	struct prefix key = {.bits = 128, .addr = *addr};

	return bpf_map_lookup_elem(&own, &key);
}

enum kind { FOREIGN, TO_VIP, REPLY, LOOP, DENIED, BANNED, SHED };

// admit finds out about a packet to a VIP whose source may be refused.
__noinline int admit(struct xdp_md *ctx, __u32 shape, bool orphan)
{
	void *end = (void *)(long)ctx->data_end, *l3 = (void *)(long)ctx->data + l3_offset(shape);
	bool ipv4 = !(shape & FRAME_IPV6);
	struct address src, dst;

	if (ipv4) {
		struct iphdr *ip = l3;

		if ((void *)(ip + 1) > end) // cannot be
			return TO_VIP;
		set_ipv4(&src, ip->saddr);
		set_ipv4(&dst, ip->daddr);
	} else {
		struct ipv6hdr *ip6 = l3;

		// A v4-mapped source is no IPv4 one; the worker refuses it.
		if ((void *)(ip6 + 1) > end || !set_ipv6(&src, &ip6->saddr) || !set_ipv6(&dst, &ip6->daddr))
			return TO_VIP;
	}
	if (watched.refusals & BY_BANS && is_banned(&src, ipv4, &watched.ban_masks))
		return BANNED;
	if (watched.refusals & BY_ACL && acl_refuses(l3, end, ipv4, &src, &dst, watched.refusals & BY_LISTS))
		return DENIED;
	if (watched.refusals & BY_SHED && !orphan && is_shed(l3, end, ipv4, &src, &dst))
		return SHED;
	return TO_VIP;
}

// classify finds out about a packet that is not to a VIP.
__noinline int classify(struct xdp_md *ctx, __u32 shape)
{
	void *end = (void *)(long)ctx->data_end, *l3 = (void *)(long)ctx->data + l3_offset(shape);
	bool ipv4 = !(shape & FRAME_IPV6);
	struct header h;
	struct address inner;

	if (!(ipv4 ? read_ipv4(l3, end, &h) : read_ipv6(l3, end, &h)))
		return FOREIGN;
	// TCP carries no tunnel: without NAT the node's own sessions need no more than this.
	if (!watched.replies && h.proto == IPPROTO_TCP)
		return FOREIGN;
	if (watched.own && tunnels(h.proto) && inner_destination(&h, end, watched.gue_port, &inner) &&
	    bpf_map_lookup_elem(&vips, &inner) && (is_own(&h.dst) || is_own(&h.src)))
		return LOOP;
	// What a backend says to the node itself answers the node itself: a health probe.
	if (watched.replies && is_reply(&h, end, ipv4) && !(watched.own && is_own(&h.dst)))
		return REPLY;
	return FOREIGN;
}

// refuse counts and drops a packet to a VIP.
static __always_inline int refuse(struct counters *count, enum kind kind)
{
	count->to_vips++;
	if (kind == LOOP)
		count->loops++;
	else if (kind == DENIED)
		count->denied++;
	else if (kind == BANNED)
		count->banned++;
	else
		count->shed++;
	return XDP_DROP;
}

SEC("xdp")
int sluice_steer(struct xdp_md *ctx)
{
	void *frame = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = frame;
	struct vlan_tag *tag = (void *)(eth + 1);
	__u32 shape = 0;

	if ((void *)tag > end)
		return XDP_PASS;
	__be16 proto = ((__be16 *)tag)[-1]; // in one piece: the structure is a packed one

	if (proto == bpf_htons(ETH_P_8021Q)) {
		if ((void *)(tag + 1) > end || (tag->tci & bpf_htons(VLAN_ID)) != bpf_htons(vlan))
			return XDP_PASS;
		proto = tag->proto;
		shape |= FRAME_TAGGED;
	} else if (vlan) {
		return XDP_PASS;
	}

	if (!own_frame(eth))
		return XDP_PASS;
	void *l3 = frame + l3_offset(shape);
	struct address dst;

	// A frame too short to hold a destination is nobody's, and the stack drops it.
	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = l3;

		if ((void *)(ip + 1) > end)
			return XDP_PASS;
		set_ipv4(&dst, ip->daddr);
	} else if (proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = l3;

		if ((void *)(ip6 + 1) > end || !set_ipv6(&dst, &ip6->daddr))
			return XDP_PASS;
		shape |= FRAME_IPV6;
	} else {
		return XDP_PASS;
	}

	struct fast_state *state = fast_on ? fast_state() : NULL;
	__u64 now = state ? fast_now() : 0;
	bool orphan = state && now >= READ_ONCE(state->alive_until);
	// Where none is refused, the word of a packet's flow says all by itself that the packet is one to a VIP.
	bool refuses = watched.refusals, to_vip = refuses && bpf_map_lookup_elem(&vips, &dst);
	enum kind kind = to_vip ? admit(ctx, shape, orphan) : TO_VIP;
	int action = XDP_PASS;

	if (state && !orphan && kind == TO_VIP && to_vip == refuses) {
		// What is found out about the packet here is of no use further down, so that nothing of it needs to be kept.
		struct plain is;
		struct fast_packet fast = {.is = &is, .state = state, .generation = READ_ONCE(state->generation), .now = now};

		if (fast.generation && parse_plain(l3, end, shape, &is) && fast_find(&fast)) {
			to_vip = true;
			action = fast_forward(ctx, shape, &fast);
			if (action > XDP_PASS) // it is counted for its slot
				return action;
		}
	}
	if (!to_vip && (refuses || !bpf_map_lookup_elem(&vips, &dst))) {
		if (!watched.replies && !watched.own)
			return XDP_PASS;
		kind = classify(ctx, shape);
		if (kind == FOREIGN)
			return XDP_PASS;
	}

	__u32 zero = 0;
	struct counters *count = bpf_map_lookup_elem(&stats, &zero);

	if (!count) // cannot be: the array has an element 0
		return XDP_ABORTED;
	if (kind > REPLY)
		return refuse(count, kind);
	if (kind == REPLY)
		count->replies++;
	else
		count->to_vips++;
	if (action == XDP_DROP) {
		count->no_exit++;
		return action;
	}
	if (!orphan) {
		// The helper looks the socket up itself and returns the flags' action when there is none, so its answer is the
		// truth about this frame: no socket can come or go between a check and the redirect.
		action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);
		if (action == XDP_REDIRECT) {
			count->redirected++;
			return action;
		}
		// A daemon that has just died took its sockets with it.
		if (!state || !READ_ONCE(state->orphan_time) || ctx->rx_queue_index >= taken) {
			count->no_socket++;
			return action;
		}
	}
	action = kind == REPLY ? XDP_PASS : forward_orphan(ctx, shape);
	if (action > XDP_PASS) {
		count->to_vips--; // it is counted for its slot
		count->orphaned++;
		return action;
	}
	if (action == XDP_DROP) {
		count->no_exit++;
		return action;
	}
	count->no_daemon++;
	return state && READ_ONCE(state->orphan_action) == XDP_DROP ? XDP_DROP : XDP_PASS;
}

// The kernel knows no "Apache" licence string; loaded into it, the program is used under its other licence.
char _license[] SEC("license") = "GPL";
