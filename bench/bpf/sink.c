// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
//
// The counting sink: frames are counted by where they go, and dropped. What makes a link work passes: frames to group
// addresses, ARP, and neighbour discovery.

#include <linux/bpf.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// Where a frame goes. Not IP, or too short: address and protocol are zero.
struct destination {
	__u8 mac[6];
	__u8 protocol; // IPv4's protocol or IPv6's next header, of the outer header
	__u8 version;  // 4, 6, or 0
	__be32 address[4]; // of the outer header; IPv4 in the first word
};

struct tally {
	__u64 packets;
	__u64 bytes; // from the Ethernet header on, without the checksum
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tally);
} total SEC(".maps");

// What finds no room here is in the total alone.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct destination);
	__type(value, struct tally);
} destinations SEC(".maps");

static __always_inline void add(struct tally *t, __u64 bytes)
{
	t->packets++;
	t->bytes += bytes;
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct destination to = {};
	__u64 bytes = end - data;
	struct tally *t;
	__u32 zero = 0;

	if ((void *)(eth + 1) > end)
		return XDP_DROP;
	if (eth->h_dest[0] & 1 || eth->h_proto == bpf_htons(ETH_P_ARP))
		return XDP_PASS;
	__builtin_memcpy(to.mac, eth->h_dest, sizeof(to.mac));
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) <= end) {
			to.version = 4;
			to.protocol = ip->protocol;
			to.address[0] = ip->daddr;
		}
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = (void *)(eth + 1);
		struct icmp6hdr *icmp6 = (void *)(ip6 + 1);

		if ((void *)(ip6 + 1) <= end) {
			// Router and neighbour discovery (RFC 4861, 4.1 to 4.5).
			if (ip6->nexthdr == IPPROTO_ICMPV6 && (void *)(icmp6 + 1) <= end && icmp6->icmp6_type >= 133 &&
			    icmp6->icmp6_type <= 137)
				return XDP_PASS;
			to.version = 6;
			to.protocol = ip6->nexthdr;
			__builtin_memcpy(to.address, &ip6->daddr, sizeof(to.address));
		}
	}

	t = bpf_map_lookup_elem(&total, &zero);
	if (t)
		add(t, bytes);
	t = bpf_map_lookup_elem(&destinations, &to);
	if (t) {
		add(t, bytes);
	} else {
		struct tally first = {.packets = 1, .bytes = bytes};

		// Another CPU may have made the element since the look-up: then this CPU's part of it is still zero.
		if (bpf_map_update_elem(&destinations, &to, &first, BPF_NOEXIST)) {
			t = bpf_map_lookup_elem(&destinations, &to);
			if (t)
				add(t, bytes);
		}
	}
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
