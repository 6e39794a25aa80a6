// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
//
// The generator's program. The kernel runs it on live frames (BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES); it
// writes the headers of the next packet into each and sends it out of the interface.

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// What is rewritten of each frame: whole words, so it ends within the payload.
#define HEADER_V4 56 // headers of at most 54 bytes
#define HEADER_V6 80 // headers of at most 74 bytes

// What is sent; constant for one load of the program. The template has zeroes for everything that differs between
// packets. Sums are ones' complement sums of 16-bit words loaded little-endian.
struct plan {
	__u64 flows;         // packet n belongs to flow n modulo flows
	__u32 source;        // last four bytes of the first source address, host order
	__u32 host_bits;     // flow f has source address source + f mod 2^host_bits …
	__u32 first_port;    // … and source port first_port + f / 2^host_bits
	__u32 ip_sum;        // of the IPv4 header of the template
	__u32 transport_sum; // of pseudo header, transport header and payload of the template
	__u8 v6;
	__u8 udp;
	__u16 unused;
	__u8 header[HEADER_V6]; // template
};

const volatile struct plan the_plan;

// Written by the program alone, which runs on one CPU at a time.
__u64 sent;

// Frames beyond this number are dropped instead of sent. Go writes it, and may at any moment.
volatile __u64 limit;

// fold makes the checksum of a ones' complement sum.
static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

// copy writes a part of the template, in words of eight bytes.
static __always_inline void copy(void *to, int from, int end)
{
#pragma unroll
	for (int i = from; i < end; i += 8)
		*(__u64 *)(to + i) = *(const volatile __u64 *)(the_plan.header + i);
}

SEC("xdp")
int livegen(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u64 n = sent;

	if (n >= limit)
		return XDP_DROP;
	if (data + (the_plan.v6 ? HEADER_V6 : HEADER_V4) > end)
		return XDP_ABORTED;

	__u64 flow = n % the_plan.flows;
	__u32 host = the_plan.source + (flow & ((1ULL << the_plan.host_bits) - 1));
	__be32 source = bpf_htonl(host);
	__be16 port = bpf_htons(the_plan.first_port + (flow >> the_plan.host_bits));
	__u32 source_sum = (source & 0xffff) + (source >> 16);
	__u16 checksum = fold(the_plan.transport_sum + source_sum + port);
	void *transport;

	if (the_plan.udp && !checksum)
		checksum = 0xffff; // 0 would say "none" (RFC 768)
	copy(data, 0, HEADER_V4);
	if (the_plan.v6) {
		copy(data, HEADER_V4, HEADER_V6);
		*(__be32 *)(data + 14 + 20) = source; // the last word of the source address
		transport = data + 14 + 40;
	} else {
		*(__u16 *)(data + 14 + 10) = fold(the_plan.ip_sum + source_sum);
		*(__be32 *)(data + 14 + 12) = source;
		transport = data + 14 + 20;
	}
	*(__be16 *)transport = port;
	*(__u16 *)(transport + (the_plan.udp ? 6 : 16)) = checksum;
	sent = n + 1;
	return XDP_TX;
}

char _license[] SEC("license") = "GPL";
