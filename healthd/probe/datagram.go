package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sluice-lb/sluice/internal/config"
)

const (
	// maxDatagram is how much of a datagram is read, in bytes: what fits into a frame of 9000 bytes. As many probes as wait for an
	// answer have such a buffer.
	maxDatagram = 9000
	// maxAnswers is how many datagrams a probe looks at: whoever sends more, and none of them an answer, does not answer.
	maxAnswers = 1000
)

// exchange sends message, and again after each third of the timeout, until accept has seen a datagram that is an answer.
func exchange(ctx context.Context, timeout time.Duration, conn *connection, message []byte, size int, accept func([]byte) (answer bool, err error)) error {
	buf := make([]byte, size)
	start, seen := time.Now(), 0
	for try := 1; try <= attempts; try++ {
		if _, err := conn.Write(message); err != nil {
			return err
		}
		for seen < maxAnswers {
			_ = conn.SetReadDeadline(start.Add(timeout * time.Duration(try) / attempts))
			if ctx.Err() != nil { // bound's deadline may have been the one before
				return ctx.Err()
			}
			n, err := conn.Read(buf)
			if timedOut(err) && try < attempts {
				break
			}
			if err != nil && !errors.Is(err, io.EOF) { // a datagram without a byte looks like an end
				return err
			}
			if answer, err := accept(buf[:n]); answer || err != nil {
				return err
			}
			seen++
		}
	}
	return bad("what the backend sends is no answer")
}

// udp sends a datagram, and takes the first one that comes for the answer.
func (p *Prober) udp(ctx context.Context, t *Target) (outcome, error) {
	expected, err := newContent(&t.Check.Expect)
	if err != nil {
		return outcome{}, err
	}
	message, err := config.Bytes(t.Check.Send)
	if err != nil {
		return outcome{}, lack("send: " + err.Error())
	}
	c, err := p.dial(ctx, "udp", t)
	if err != nil {
		return outcome{}, err
	}
	conn := bound(ctx, c)
	defer conn.Close()
	size := 1
	if !expected.any() {
		size = min(limit(&t.Check.Expect), maxDatagram)
	}
	err = exchange(ctx, t.timeout(), conn, message, size, func(data []byte) (bool, error) { return true, expected.check(data) })
	if err != nil {
		return outcome{}, err
	}
	return saw("answered"), nil
}

// dnsTypes are the types of records that a query may ask for.
var dnsTypes = map[string]dnsmessage.Type{
	"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA, "NS": dnsmessage.TypeNS, "SOA": dnsmessage.TypeSOA,
	"MX": dnsmessage.TypeMX, "TXT": dnsmessage.TypeTXT, "CNAME": dnsmessage.TypeCNAME,
}

// dnsCodes are the names that operators know codes of answers by.
var dnsCodes = map[dnsmessage.RCode]string{
	dnsmessage.RCodeFormatError: "FORMERR", dnsmessage.RCodeServerFailure: "SERVFAIL", dnsmessage.RCodeNameError: "NXDOMAIN",
	dnsmessage.RCodeNotImplemented: "NOTIMP", dnsmessage.RCodeRefused: "REFUSED",
}

// dns asks for the records of a name.
func (p *Prober) dns(ctx context.Context, t *Target) (outcome, error) {
	expected, err := newContent(&t.Check.Expect)
	if err != nil {
		return outcome{}, err
	}
	if t.Check.Query == nil {
		return outcome{}, lack("the check has no query")
	}
	name, err := dnsmessage.NewName(strings.TrimSuffix(t.Check.Query.Name, ".") + ".")
	kind, known := dnsTypes[t.Check.Query.Type]
	if err != nil || !known {
		return outcome{}, lack(fmt.Sprintf("query: there are no records of type %q of %q", t.Check.Query.Type, t.Check.Query.Name))
	}
	q := dnsmessage.Message{
		// As a client would ask that leaves it to the server to go and find out.
		Header:    dnsmessage.Header{ID: uint16(rand.Uint32()), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name, Type: kind, Class: dnsmessage.ClassINET}},
	}
	message, err := q.Pack()
	if err != nil {
		return outcome{}, lack("query: " + err.Error())
	}
	c, err := p.dial(ctx, "udp", t)
	if err != nil {
		return outcome{}, err
	}
	conn := bound(ctx, c)
	defer conn.Close()
	var records []string
	strange := false
	err = exchange(ctx, t.timeout(), conn, message, maxDatagram, func(data []byte) (bool, error) {
		var answer bool
		var err error
		records, answer, err = dnsAnswer(data, &q)
		strange = strange || !answer
		return answer, err
	})
	switch {
	case err != nil && strange && timedOut(err): // it may have been the answer to an earlier probe, from the same port
		return outcome{}, bad("what the backend sends is no answer to the query")
	case err != nil:
		return outcome{}, err
	}
	text := strings.Join(records, "\n")
	if err := expected.check([]byte(text[:min(len(text), limit(&t.Check.Expect))])); err != nil {
		return outcome{}, err
	}
	return saw("DNS " + t.Check.Query.Type + " " + strings.Join(records, ", ")), nil
}

// dnsAnswer returns the records of the type that was asked for, and whether data is an answer to q at all. Which names they are
// of does not matter: they may be those of a CNAME.
func dnsAnswer(data []byte, q *dnsmessage.Message) (records []string, answer bool, err error) {
	var p dnsmessage.Parser
	h, err := p.Start(data)
	if err != nil || !h.Response || h.ID != q.ID {
		return nil, false, nil
	}
	asked := q.Questions[0]
	// A server that refuses or cannot read a query may leave the question out.
	questions, err := p.AllQuestions()
	if err != nil || len(questions) > 1 || len(questions) == 0 && h.RCode == dnsmessage.RCodeSuccess || len(questions) == 1 && (questions[0].Type != asked.Type ||
		questions[0].Class != asked.Class || !strings.EqualFold(questions[0].Name.String(), asked.Name.String())) {
		return nil, false, nil
	}
	if h.RCode != dnsmessage.RCodeSuccess {
		code := dnsCodes[h.RCode]
		if code == "" {
			code = fmt.Sprintf("code %d", h.RCode)
		}
		return nil, true, bad("DNS " + code)
	}
	for {
		rh, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil {
			return nil, true, bad("the answer cannot be read as DNS: " + err.Error())
		}
		if rh.Type != asked.Type || rh.Class != asked.Class {
			if err := p.SkipAnswer(); err != nil {
				return nil, true, bad("the answer cannot be read as DNS: " + err.Error())
			}
			continue
		}
		r, err := p.Answer()
		if err != nil {
			return nil, true, bad("the answer cannot be read as DNS: " + err.Error())
		}
		records = append(records, recordText(r.Body))
	}
	switch {
	case len(records) == 0 && h.Truncated:
		return nil, true, bad("DNS NOERROR, but the answer is cut off before the first record")
	case len(records) == 0:
		return nil, true, bad("DNS NOERROR, but no record of the type asked for")
	}
	return records, true, nil
}

// recordText is a record as a zone file has it, without quotes.
func recordText(body dnsmessage.ResourceBody) string {
	switch b := body.(type) {
	case *dnsmessage.AResource:
		return netip.AddrFrom4(b.A).String()
	case *dnsmessage.AAAAResource:
		return netip.AddrFrom16(b.AAAA).String()
	case *dnsmessage.NSResource:
		return b.NS.String()
	case *dnsmessage.CNAMEResource:
		return b.CNAME.String()
	case *dnsmessage.MXResource:
		return fmt.Sprintf("%d %s", b.Pref, b.MX)
	case *dnsmessage.TXTResource:
		return strings.Join(b.TXT, "")
	case *dnsmessage.SOAResource:
		return fmt.Sprintf("%s %s %d %d %d %d %d", b.NS, b.MBox, b.Serial, b.Refresh, b.Retry, b.Expire, b.MinTTL)
	}
	return "" // dnsTypes has no other
}
