// Package verdict decides what a backend is, from what probes and the dataplane say of it. It is pure: a [Backend] is a
// value, [Backend.Next] returns what it becomes by one event at one time, and nothing else happens. There is no clock, no
// goroutine and no lock; whoever holds a Backend guards it.
//
// Four things are known of a backend, and none of them changes another:
//
//   - Its [State], by liveness probes: alive or dead. The first good probe makes a new backend alive, Fall bad ones in a row
//     make it dead, Rise good ones in a row alive again. GoingDown and GoingUp are shown on the way: a backend that is going
//     down is alive, one that is going up is dead.
//   - Whether it is ready, by a second, deeper check. One that is not ready takes no new flows; the flows it has go on. It is
//     never dead for that.
//   - Whether it is ejected, by what the dataplane sees ([Outlier]). It takes no new flows for a time, which ends by itself and
//     is longer each time; the flows it has go on. Probes neither begin nor end an ejection. One that is dead is dead, ejected
//     or not.
//   - Its weight in percent, as the last good answers of the two checks say. It is absolute: no answer adds to another.
//
// # Flap damping
//
// A backend that falls again and again breaks the flows it has each time. So each fall counts 1, halved every five minutes, and
// with a sum of s rounded falls Rise is doubled s-1 times, at most four times (16 × Rise), and never so often that the good
// probes would take more than five minutes. One fall alone costs nothing, nor does a deploy every ten minutes (its falls add up to
// 1⅓); a backend that falls every two minutes (to 4.1) needs eight times as many good probes. Half of it is forgotten within the
// five minutes after which an operator who has mended something would begin to wonder.
//
// A fall that is only not seen because of the damping counts too: the undamped rule runs along in the background. So a backend that
// goes on flapping stays down, instead of being tried again each time the sum has halved.
//
// Readiness is not damped. Being unready ends no flow; servers switch it themselves to shed load, and holding it back would take
// capacity away just then. ReadyRise and ReadyFall are what keeps it calm.
//
// # Time
//
// Times are used only by their differences. With the monotonic reading that [time.Now] gives them, a stepped clock changes nothing.
// A time before that of the last event counts as that one.
package verdict
