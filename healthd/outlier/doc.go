// Package outlier finds backends at which new flows fail while they succeed at the service's others, from counts of the
// dataplane. It finds within a second, on the way that data goes, what a probe sees after some intervals or not at all. It is
// pure: a [Detector] has no clock, no goroutine and no lock; one goroutine at a time uses it.
//
// Replies bypass the node (DSR), so it is told what clients do: a handshake is complete when the client's ACK comes, and lost when
// the client sends its SYN again or nothing more. That can be the fault of the client, of the backend, or of any part of the way
// between. What tells them apart is comparison: clients are spread over all backends, so a backend is judged by how the others fare
// with the same clients at the same time, and by how improbable its counts would be if it were like them. If all fare alike, it is
// the clients, the path or an attack, and nobody is ejected.
//
// # The rules
//
//   - [NoHop]: the node has no route or no neighbour for it. New flows cannot reach it.
//   - [Unreachable]: three ICMP errors about it within a second, and no handshake completed since. Whoever can send such errors to the
//     node can forge them; the ceiling bounds what that does.
//   - [Dead]: n of its SYNs in a row, each older than 200 ms, and 500 ms without a single handshake. r is the share of SYNs that
//     complete at the others, in the last ten seconds and since the first of the n, whichever is less, and at most 99 %. It is
//     ejected if (1-r)ⁿ ≤ 10⁻⁹, n ≥ 5 and r ≥ 0.3. The bound is that low because it is asked anew at each SYN: a service with 20
//     SYN/s asks two million times a day. With a clean r five SYNs are enough. r since the first SYN is what protects during a
//     burst of SYNs that nobody ever completes, as a scanner sends: it spoils r at the others just as much, and ten seconds
//     would hide that.
//   - [Retransmissions]: of 30 SYNs or more in ten seconds, more than 30 % were sent again, and three times the others' share. A
//     client sends a SYN up to three times within that time, so three count as one event in what is improbable.
//   - [Resets]: of 30 handshakes or more in ten seconds, more than half were reset by the client soon after, and five times the
//     others' share.
//
// # Who the clients are
//
// If the SYNs without answer all come from one source, it may be a client that does not hear this one backend. So they count only
// from two sources on, or if that source is all the service has: then the others' share is of this very client. Sources are
// told apart by a set of 64 bits, so two may look like one, never one like two.
//
// Where flows are chosen by their source, a source sends all its SYNs to one backend, and many SYNs are one trial. So n is the
// number of sources there: at least five. Retransmissions and resets are not judged there, for one busy client makes them.
//
// # What the counts do not tell
//
//   - A process that hangs still completes handshakes, by its kernel, until its backlog is full. Probes that want an answer see it.
//   - UDP has no handshakes: NoHop and Unreachable are all there is.
//   - Resets by clients can be the clients' habit, as with probes and scanners. They come alike at all backends.
//   - Fewer than five SYNs in ten seconds are too few to judge. Probes are for quiet backends.
//   - With l2 forwarding ICMP errors go to the client.
//   - While SYNs are answered on the node (SYN defence), backends see none of them. That, and a pause of the caller, is forgotten
//     whole ([Detector.Observe]).
package outlier
