// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
//
// The steering program. It runs on every frame an interface receives, before the kernel's stack sees it:
//
//   destined to a VIP, and to this interface's own MAC  → the AF_XDP socket of the frame's queue; dropped and counted
//                                                          if the queue has none
//   everything else (ARP, BGP, SSH, health probes …)    → the kernel's stack, untouched
//
// Only what decides that is looked at: the two addresses. Whether the packet is well formed is the worker's question,
// so that every bad packet to a VIP ends under a reason in one place.

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// A 128-bit address in network order; IPv4 as v4-mapped, ::ffff:a.b.c.d.
struct address {
	__u32 word[4];
};

// What one CPU counted. to_vips = redirected + no_socket, always.
struct counters {
	__u64 to_vips;    // packets whose destination is a VIP
	__u64 redirected; // of these, given to a socket
	__u64 no_socket;  // of these, dropped because their queue has no socket
};

// The set of VIPs; shared by all interfaces, written by Go.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); // set by the loader
	__type(key, struct address);
	__type(value, __u8); // unused
} vips SEC(".maps");

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

// The interface's MAC: the six bytes in frame order in the low 48 bits of a little-endian word, written by Go.
__u64 own_mac;

// own_frame reports whether a frame is addressed to this interface. A frame for another host gets here when the NIC is
// promiscuous (tcpdump) or the switch floods. The stack ignores such frames; taking them would forward packets twice,
// and round in circles between two nodes when the rewritten frame is flooded again.
static __always_inline bool own_frame(const struct ethhdr *eth)
{
	const __u16 *dst = (const __u16 *)eth->h_dest;

	return ((__u64)dst[0] | (__u64)dst[1] << 16 | (__u64)dst[2] << 32) == own_mac;
}

SEC("xdp")
int sluice_steer(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct address dst = {};

	if ((void *)(eth + 1) > end)
		return XDP_PASS;

	// A frame too short to hold a destination is nobody's, and the stack drops it.
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end)
			return XDP_PASS;
		dst.word[2] = bpf_htonl(0xffff);
		dst.word[3] = ip->daddr;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = (void *)(eth + 1);

		if ((void *)(ip6 + 1) > end)
			return XDP_PASS;
		dst.word[0] = ip6->daddr.in6_u.u6_addr32[0];
		dst.word[1] = ip6->daddr.in6_u.u6_addr32[1];
		dst.word[2] = ip6->daddr.in6_u.u6_addr32[2];
		dst.word[3] = ip6->daddr.in6_u.u6_addr32[3];
		// Not an IPv6 address on the wire (RFC 4291, 2.5.5.2), but the name of an IPv4 VIP in the map.
		if (!dst.word[0] && !dst.word[1] && dst.word[2] == bpf_htonl(0xffff))
			return XDP_PASS;
	} else {
		return XDP_PASS;
	}

	if (!own_frame(eth) || !bpf_map_lookup_elem(&vips, &dst))
		return XDP_PASS;

	__u32 zero = 0;
	struct counters *count = bpf_map_lookup_elem(&stats, &zero);
	if (!count) // cannot be: the array has an element 0
		return XDP_ABORTED;

	// The helper looks the socket up itself and returns the flags' action when there is none, so its answer is the
	// truth about this frame: no socket can come or go between a check and the redirect.
	int action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);

	count->to_vips++;
	if (action == XDP_REDIRECT)
		count->redirected++;
	else
		count->no_socket++;
	return action;
}

// The kernel knows no "Apache" licence string; loaded into it, the program is used under its other licence.
char _license[] SEC("license") = "GPL";
