package probe

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

// defaultLimit is for checks that name none, which do not come from a file.
const defaultLimit = 64 << 10

func limit(e *config.Expect) int {
	if e.Limit == 0 {
		return defaultLimit
	}
	return e.Limit
}

// content is what an answer has to hold.
type content struct {
	part    []byte
	pattern *regexp.Regexp
	words   string // both, as the check has them
}

func newContent(e *config.Expect) (content, error) {
	var c content
	var words []string
	var err error
	if e.Body != "" {
		if c.part, err = config.Bytes(e.Body); err != nil {
			return c, lack(fmt.Sprintf("expect.body: %v", err))
		}
		words = append(words, fmt.Sprintf("%q", e.Body))
	}
	if e.BodyRegexp != "" {
		if c.pattern, err = regexp.Compile(e.BodyRegexp); err != nil {
			return c, lack(fmt.Sprintf("expect.body_regexp: %v", err))
		}
		words = append(words, "/"+e.BodyRegexp+"/")
	}
	c.words = strings.Join(words, " and ")
	return c, nil
}

// any reports whether every answer will do.
func (c *content) any() bool { return c.words == "" }

// in reports whether data holds it.
func (c *content) in(data []byte) bool {
	return bytes.Contains(data, c.part) && (c.pattern == nil || c.pattern.Match(data))
}

// missing says that data does not hold it.
func (c *content) missing(data []byte) error {
	if len(data) == 0 {
		return bad("the answer is empty, and lacks " + c.words)
	}
	return bad("the answer lacks " + c.words + ": it begins with " + quoted(data))
}

// check is missing, if it is.
func (c *content) check(data []byte) error {
	if !c.in(data) {
		return c.missing(data)
	}
	return nil
}

// arrives reads from conn until what has come holds c, for at most limit bytes and until ctx is done. Not every byte is a reason to
// look again at all that came before, or one that drips them would cost this node dearly: what has come is looked at when
// it has grown by an eighth, and when nothing more came for a while.
func (c *content) arrives(ctx context.Context, conn *connection, limit int) error {
	var data []byte
	var buf [4096]byte
	deadline, _ := ctx.Deadline()
	pause := time.Until(deadline) / 16
	seen, look := 0, 1 // how much was looked at, and how much will be worth another look
	for len(data) < limit {
		until := deadline
		if seen < len(data) {
			if soon := time.Now().Add(pause); soon.Before(deadline) {
				until = soon
			}
		}
		_ = conn.SetReadDeadline(until)
		if ctx.Err() != nil { // bound's deadline may have been the one before
			_ = conn.SetReadDeadline(longAgo)
		}
		n, err := conn.Read(buf[:min(len(buf), limit-len(data))])
		data = append(data, buf[:n]...)
		if len(data) >= look || err != nil {
			if c.in(data) {
				return nil
			}
			seen, look = len(data), nextLook(len(data))
		}
		switch {
		case err == nil, timedOut(err) && ctx.Err() == nil && time.Now().Before(deadline):
		case len(data) == 0:
			return err
		case timedOut(err), ended(err):
			return c.missing(data)
		default:
			return err
		}
	}
	return c.check(data)
}

// nextLook is at how many bytes to look again after n.
func nextLook(n int) int { return n + n/8 + 1 }

// percent reads a share of 0 to 100 percent: digits, and a sign after them that may be missing.
func percent(s string) (int, bool) {
	digits := strings.TrimSuffix(strings.TrimSpace(s), "%")
	if digits == "" || len(digits) > 3 {
		return 0, false
	}
	n := 0
	for _, d := range []byte(digits) {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = 10*n + int(d-'0')
	}
	return n, n <= 100
}
