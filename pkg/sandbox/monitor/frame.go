package monitor

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// maxFiles is the number of descriptors that a request may carry: stdin, stdout, stderr.
const maxFiles = 3

// WriteFrame sends v, and with its first byte the files, which stay the caller's.
func WriteFrame(conn *net.UnixConn, v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	if len(body) > MaxFrame {
		return fmt.Errorf("encode frame: %d bytes are more than %d", len(body), MaxFrame)
	}
	buf := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(buf, uint32(len(body)))
	buf = append(buf, body...)
	n := 0
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		if n, _, err = conn.WriteMsgUnix(buf, unix.UnixRights(fds...), nil); err != nil {
			return fmt.Errorf("write frame: %w", err)
		}
	}
	if n < len(buf) {
		if _, err := conn.Write(buf[n:]); err != nil {
			return fmt.Errorf("write frame: %w", err)
		}
	}
	return nil
}

// ReadFrame receives a frame into v and returns the files that came with it, which are the caller's to close.
// io.EOF means that the peer closed the connection between frames.
func ReadFrame(conn *net.UnixConn, v any) ([]*os.File, error) {
	header := make([]byte, 4)
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(header, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, err
	}
	files, err := receivedFiles(oob[:oobn])
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = fmt.Errorf("read frame: more than %d descriptors", maxFiles)
	}
	if err == nil {
		err = readBody(conn, header, n, v)
	}
	if err != nil {
		CloseFiles(files)
		return nil, err
	}
	return files, nil
}

func readBody(conn *net.UnixConn, header []byte, n int, v any) error {
	if _, err := io.ReadFull(conn, header[n:]); err != nil {
		return fmt.Errorf("read frame: %w", err)
	}
	size := binary.BigEndian.Uint32(header)
	if size > MaxFrame {
		return fmt.Errorf("read frame: %d bytes are more than %d", size, MaxFrame)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(conn, body); err != nil {
		return fmt.Errorf("read frame: %w", err)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("decode frame: %w", err)
	}
	return nil
}

func receivedFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("read descriptors: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials or the like
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// CloseFiles closes files, some of which may be nil.
func CloseFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
