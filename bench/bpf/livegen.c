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

#define MOST_SIZES 16 // a power of two

// A frame of one size. The template has zeroes for everything that differs between packets. Sums are ones' complement sums
// of 16-bit words loaded little-endian.
struct shape {
	__u32 cut;           // by how many bytes it is shorter than the longest
	__u32 ip_sum;        // of the IPv4 header of the template
	__u32 transport_sum; // of pseudo header, transport header and payload of the template
	__u32 unused;
	__u8 header[HEADER_V6]; // template
};

// What is sent; constant for one load of the program.
struct plan {
	__u64 flows;      // packet n belongs to flow n modulo flows
	__u32 source;     // last four bytes of the first source address, host order
	__u32 host_bits;  // flow f has source address source + f mod 2^host_bits …
	__u32 first_port; // … and source port first_port + f / 2^host_bits
	__u32 sizes;      // packet n has shape n modulo sizes
	__u64 gap;        // from one packet to the next, in 1/256 ns; 0: none, whoever runs the program sets the pace
	__u64 late;       // what is due for longer is not sent any more, in 1/256 ns
	__u8 v6;
	__u8 udp;
	__u8 stamp; // the payload begins with the time, as stopwatch.c reads it
	__u8 unused[5];
	struct shape shape[MOST_SIZES];
};

const volatile struct plan the_plan;

// Written by the program alone, which runs on one CPU at a time.
__u64 sent;

// When the next packet is due, in 1/256 ns. Written by the program alone.
__u64 due;

// Frames beyond this number are dropped instead of sent. Go writes it, and may at any moment.
volatile __u64 limit;

// fold makes the checksum of a ones' complement sum.
static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

// copy writes a part of a template, in words of eight bytes.
static __always_inline void copy(void *to, const volatile struct shape *shape, int from, int end)
{
#pragma unroll
	for (int i = from; i < end; i += 8)
		*(__u64 *)(to + i) = *(const volatile __u64 *)(shape->header + i);
}

// early says that the next packet is not due yet. If it is, it works out when the one after it will be.
static __always_inline int early(void)
{
	__u64 now = bpf_ktime_get_ns() << 8;
	__u64 then = due;

	if (!then)
		then = now;
	if (now < then)
		return 1;
	if (now - then > the_plan.late)
		then = now - the_plan.late;
	due = then + the_plan.gap;
	return 0;
}

SEC("xdp")
int livegen(struct xdp_md *ctx)
{
	__u64 n = sent;
	const volatile struct shape *shape = &the_plan.shape[0];
	void *data, *end;

	if (n >= limit)
		return XDP_DROP;
	if (the_plan.gap && early())
		return XDP_DROP;
	if (the_plan.sizes > 1) {
		__u64 which = n % the_plan.sizes;

		shape = &the_plan.shape[which & (MOST_SIZES - 1)];
		// The kernel gives each frame anew in its full length, which is that of the longest.
		if (shape->cut && bpf_xdp_adjust_tail(ctx, -(int)shape->cut))
			return XDP_ABORTED;
	}
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + (the_plan.v6 ? HEADER_V6 : HEADER_V4) > end)
		return XDP_ABORTED;

	__u64 flow = n % the_plan.flows;
	__u32 host = the_plan.source + (flow & ((1ULL << the_plan.host_bits) - 1));
	__be32 source = bpf_htonl(host);
	__be16 port = bpf_htons(the_plan.first_port + (flow >> the_plan.host_bits));
	__u32 source_sum = (source & 0xffff) + (source >> 16);
	__u16 checksum = fold(shape->transport_sum + source_sum + port);
	void *transport;

	if (the_plan.udp && !checksum)
		checksum = 0xffff; // 0 would say "none" (RFC 768)
	copy(data, shape, 0, HEADER_V4);
	if (the_plan.v6) {
		copy(data, shape, HEADER_V4, HEADER_V6);
		*(__be32 *)(data + 14 + 20) = source; // the last word of the source address
		transport = data + 14 + 40;
	} else {
		*(__u16 *)(data + 14 + 10) = fold(shape->ip_sum + source_sum);
		*(__be32 *)(data + 14 + 12) = source;
		transport = data + 14 + 20;
	}
	*(__be16 *)transport = port;
	*(__u16 *)(transport + (the_plan.udp ? 6 : 16)) = checksum;
	if (the_plan.stamp) {
		__u64 *stamp = transport + 8;

		if ((void *)(stamp + 2) > end)
			return XDP_ABORTED;
		// With its complement the time adds nothing to the checksum, and can be told from other payload.
		stamp[0] = bpf_ktime_get_ns();
		stamp[1] = ~stamp[0];
	}
	sent = n + 1;
	return XDP_TX;
}

char _license[] SEC("license") = "GPL";
