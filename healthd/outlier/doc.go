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
//     the others answered at once in the last ten seconds, at most 99 %. It is ejected if n ≥ 5, r ≥ 0.3 and (1-r)ⁿ ≤ 10⁻⁹; and if
//     since the first of the n the others still answer 0.8 r, so many that by them alone it is less than one in a thousand that
//     all fare alike (Fisher's exact test).
//   - [Retransmissions]: of 30 SYNs or more in ten seconds, more than 30 % were sent again, and three times the others' share. A
//     client sends a SYN up to three times within that time, so three count as one event in what is improbable.
//   - [Resets]: of 30 handshakes or more in ten seconds, more than half were reset by the client soon after, and five times the
//     others' share.
//
// The last two are asked to be as improbable as the dead, at the others' share (Chernoff's bound on the binomial distribution).
//
// # Why the rule for the dead is so strict
//
// It is asked anew at each SYN, and a service with 20 SYN/s asks two million times a day. With a clean r five SYNs are enough
// nevertheless. The look at the same time is what holds when something happens to all: a scanner's burst of SYNs that it never
// completes, or an outage of many clients, spoils the others just as much, which ten seconds would hide.
//
// A handshake after a SYN that was sent again is not at once, so on lossy ways r is low and n is high. And with clients so far away
// that a handshake takes longer than 500 ms, a pause of their SYNs makes a pause of handshakes later, while new SYNs are on their
// way. So the time without a handshake has to be twice the longest time, of the last minute or two, that a handshake came after the last SYN
// of its backend.
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
