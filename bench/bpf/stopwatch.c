// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
//
// The stopwatch: a sink that counts how long frames were under way which the generator has stamped, also inside of an outer
// IPv4 header. Everything else passes.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// The buckets: a power of two is cut into PARTS equal ones, so a value is known to 1 in PARTS.
#define PART_BITS 6
#define PARTS (1 << PART_BITS)
#define BUCKETS ((64 - PART_BITS + 1) * PARTS)

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BUCKETS);
	__type(key, __u32);
	__type(value, __u64);
} times SEC(".maps");

static __always_inline __u32 log2(__u64 v)
{
	__u32 bits = 0;

#pragma unroll
	for (int step = 32; step; step >>= 1) {
		if (v >> step) {
			v >>= step;
			bits += step;
		}
	}
	return bits;
}

// bucket is the number of the bucket of a value; package bench knows the way back.
static __always_inline __u32 bucket(__u64 v)
{
	__u32 shift;

	if (v < PARTS)
		return v;
	shift = log2(v) - PART_BITS;
	return (shift + 1) * PARTS + ((v >> shift) & (PARTS - 1));
}

SEC("xdp")
int stopwatch(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	__u64 now = bpf_ktime_get_ns();
	__u64 *stamp, *count;
	__u32 index;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	if (ip->protocol == IPPROTO_IPIP) {
		ip++;
		if ((void *)(ip + 1) > end)
			return XDP_PASS;
	}
	stamp = (void *)(ip + 1) + sizeof(struct udphdr);
	if (ip->protocol != IPPROTO_UDP || (void *)(stamp + 2) > end || stamp[0] != ~stamp[1])
		return XDP_PASS;
	index = bucket(now - stamp[0]);
	count = bpf_map_lookup_elem(&times, &index);
	if (count)
		(*count)++;
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
