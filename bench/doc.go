// Package bench makes traffic and counts it.
//
// A [Generator] sends packets from inside the kernel at up to some ten million a second: any number of flows, real or
// spoofed sources, TCP with any flags or UDP, IPv4 and IPv6, all checksums right. A [Sink] is its counterpart: it counts
// the frames that an interface receives by destination and drops them. Tests and floods are made of the two. A [Stopwatch] is a
// sink that tells how long frames were under way.
//
// All of them take a [testenv.Namespace], so they work only in network namespaces that were made for it; traffic is bounded in
// count or time. When their process dies the kernel takes everything back.
//
// The memory is the kernel's. Any goroutine may call any method.
package bench
