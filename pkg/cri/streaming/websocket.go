package streaming

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/sirupsen/logrus"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// serveWebSocket speaks version 5 of the remote command protocol, which has a signal for the end of stdin and which the library's
// own WebSocket handler lacks. The channels are those of version 4.
func (s *Server) serveWebSocket(w http.ResponseWriter, r *http.Request, want Streams, run command) {
	channels := []wsstream.ChannelType{
		remotecommand.StreamStdIn:  channel(want.Stdin, wsstream.ReadChannel),
		remotecommand.StreamStdOut: channel(want.Stdout, wsstream.WriteChannel),
		remotecommand.StreamStdErr: channel(want.Stderr, wsstream.WriteChannel),
		remotecommand.StreamErr:    wsstream.WriteChannel,
		remotecommand.StreamResize: wsstream.ReadChannel,
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channels},
	})
	conn.SetIdleTimeout(s.settings.Idle)
	_, open, err := conn.Open(w, r)
	if err != nil {
		logrus.WithError(err).WithField("client", r.RemoteAddr).Warn("refused a WebSocket")
		return
	}
	defer conn.Close()
	st := streams{resize: sizes(r, open[remotecommand.StreamResize])}
	if want.Stdin {
		st.in = open[remotecommand.StreamStdIn]
	}
	if want.Stdout {
		st.out = open[remotecommand.StreamStdOut]
	}
	if want.Stderr {
		st.errOut = open[remotecommand.StreamStdErr]
	}
	// An empty message tells the client that the streams are open.
	_, _ = open[remotecommand.StreamErr].Write(nil)
	status, err := json.Marshal(statusOf(run(r.Context(), st)))
	if err == nil {
		_, err = open[remotecommand.StreamErr].Write(status)
	}
	if err != nil {
		logrus.WithError(err).Debug("the client has gone before its status")
	}
}

func channel(wanted bool, t wsstream.ChannelType) wsstream.ChannelType {
	if wanted {
		return t
	}
	return wsstream.IgnoreChannel
}

// sizes decodes the sizes of the client's terminal, until its stream ends.
func sizes(r *http.Request, stream io.Reader) <-chan remotecommand.TerminalSize {
	out := make(chan remotecommand.TerminalSize)
	go func() {
		defer close(out)
		for d := json.NewDecoder(stream); ; {
			var size remotecommand.TerminalSize
			if d.Decode(&size) != nil {
				return
			}
			select {
			case out <- size:
			case <-r.Context().Done():
				return
			}
		}
	}()
	return out
}

// status is the part of metav1.Status that clients read.
type status struct {
	Status  string   `json:"status"`
	Message string   `json:"message,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Details *details `json:"details,omitempty"`
	Code    int      `json:"code,omitempty"`
}

type details struct {
	Causes []cause `json:"causes"`
}

// cause is metav1.StatusCause, whose type is called reason on the wire.
type cause struct {
	Type    string `json:"reason"`
	Message string `json:"message"`
}

func statusOf(err error) status {
	var exit utilexec.ExitError
	switch {
	case err == nil:
		return status{Status: "Success"}
	case errors.As(err, &exit) && exit.Exited():
		return status{Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason, Message: err.Error(), Details: &details{
			[]cause{{remotecommand.ExitCodeCauseType, strconv.Itoa(exit.ExitStatus())}},
		}}
	}
	return status{Status: "Failure", Reason: "InternalError", Message: err.Error(), Code: http.StatusInternalServerError}
}
