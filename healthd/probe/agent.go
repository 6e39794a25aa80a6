package probe

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
)

// maxAgentLine is how much of an agent's line is read, in bytes.
const maxAgentLine = 256

// agent reads one line of words, as HAProxy's agent-check has it.
func (p *Prober) agent(ctx context.Context, t *Target) (outcome, error) {
	conn, err := p.address(ctx, t)
	if err != nil {
		return outcome{}, err
	}
	defer conn.Close()
	line, err := bufio.NewReaderSize(io.LimitReader(conn, maxAgentLine), maxAgentLine).ReadString('\n')
	switch {
	case err == nil, ended(err) && line != "": // the end of a connection ends the line, too
	case ended(err):
		return outcome{}, bad("the agent closes the connection without a word")
	case line != "" && timedOut(err):
		return outcome{}, bad("the agent's line does not end: " + quoted([]byte(line)))
	default:
		return outcome{}, after("connected", err)
	}
	return agentSays(line)
}

// agentSays reads an agent's line. Of words that contradict each other the one that takes more away counts.
func agentSays(line string) (outcome, error) {
	words, description, _ := strings.Cut(line, "#")
	said := saw("")
	var down string
	known, ignored := false, ""
	for _, word := range strings.FieldsFunc(strings.ToLower(words), func(r rune) bool { return strings.ContainsRune(" ,\t\r\n", r) }) {
		asks := -1
		switch word {
		case "up", "ready":
		case "drain", "maint":
			asks = 0
		case "down", "fail", "failed", "stopped":
			if down == "" {
				down = word
			}
		default:
			n, ok := percent(word)
			share := strings.HasSuffix(word, "%")
			if !share || !ok { // such as 150%, or maxconn:30, which HAProxy knows
				ignored += fmt.Sprintf(", %q ignored", word)
				known = known || share
				continue
			}
			asks = n
		}
		known = true
		if asks >= 0 && (said.asks < 0 || asks < said.asks) {
			said.asks = asks
		}
	}
	if description = strings.TrimSpace(description); description != "" {
		description = ": " + description
	}
	switch {
	case down != "":
		return outcome{}, bad("agent says " + down + description)
	case !known:
		return outcome{}, bad("the agent's line has no word that is known: " + quoted([]byte(line)))
	case said.asks >= 0:
		said.evidence = fmt.Sprintf("agent asks for %d%%%s%s", said.asks, ignored, description)
	default:
		said.evidence = "agent says up" + ignored + description
	}
	return said, nil
}
