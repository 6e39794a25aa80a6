package forwarder

import (
	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/forwarder/packet"
)

// CookieOffer is what SYN cookies may agree to in the name of a service's backends. The zero CookieOffer is what is assumed of
// backends of which nothing is known: all options, and no cookies but for services that ask for them.
type CookieOffer struct {
	// Ready says that every backend that admits new flows takes cookies: a service with DefenceAuto answers with them.
	Ready bool
	// What some of the backends do not agree to.
	NoWindowScale, NoSACK, NoTimestamps, NoECN bool
}

// The bits of an offer's word.
const (
	offerReady = 1 << iota
	offerNoWindowScale
	offerNoSACK
	offerNoTimestamps
	offerNoECN
)

func (o CookieOffer) word() (word uint32) {
	for i, set := range [...]bool{o.Ready, o.NoWindowScale, o.NoSACK, o.NoTimestamps, o.NoECN} {
		if set {
			word |= 1 << i
		}
	}
	return word
}

// SetCookies sets what SYN cookies of a service agree to from now on: one atomic store. It reports whether there is such a
// service. Any goroutine may call it.
func (e *Engine) SetCookies(service string, o CookieOffer) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.services[service]
	if s != nil {
		e.offers[s.number].Store(o.word())
	}
	return s != nil
}

// CookieKeyID names the secret of the node's SYN cookies, see guard.CookieKeyID.
func (e *Engine) CookieKeyID() string { return guard.CookieKeyID(e.keys.Cookie) }

// limitOptions takes away what a service's backends do not agree to.
func limitOptions(o packet.SYNOptions, offer uint32) packet.SYNOptions {
	if offer&offerNoWindowScale != 0 {
		o.WScale = packet.NoWScale
	}
	o.SACK = o.SACK && offer&offerNoSACK == 0
	o.ECN = o.ECN && offer&offerNoECN == 0
	o.Timestamps = o.Timestamps && offer&offerNoTimestamps == 0
	return o
}
