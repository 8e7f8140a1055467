/* Writes down everything that a program of Windows was given, and ends as it is told:
 *
 *     show.exe FILE STATUS ARGUMENT…
 *
 * FILE gets four parts with \x01 between them, each of texts in UTF-8 that end with NUL: the arguments, the environment, the
 * working directory and the place for temporary files, what lies in the files below that there are. A FILE of "-" is `shown` in
 * the new directory %WINDOWS_out%. With a STATUS below 0 it never ends. */

#include <stdio.h>
#include <stdlib.h>
#include <wchar.h>
#include <windows.h>

static void put(FILE *file, const wchar_t *text)
{
    static char bytes[1 << 17];
    int length = WideCharToMultiByte(CP_UTF8, 0, text, -1, bytes, sizeof bytes, NULL, NULL);
    fwrite(bytes, 1, length, file);
}

static void put_content(FILE *file, const wchar_t *path)
{
    FILE *read = _wfopen(path, L"rb");
    if (read == NULL)
        return;
    for (int byte = fgetc(read); byte != EOF; byte = fgetc(read))
        fputc(byte, file);
    fputc(0, file);
    fclose(read);
}

int wmain(int count, wchar_t **arguments)
{
    static wchar_t path[1 << 15], place[1 << 15];
    if (count < 3)
        return 2;
    wcscpy(path, arguments[1]);
    if (wcscmp(path, L"-") == 0) {
        const wchar_t *out = _wgetenv(L"WINDOWS_out");
        if (out == NULL || !CreateDirectoryW(out, NULL)) {
            fprintf(stderr, "WINDOWS_out is no directory to be: error %lu\n", GetLastError());
            return 3;
        }
        swprintf(path, 1 << 15, L"%ls\\shown", out);
    }
    FILE *file = _wfopen(path, L"wb");
    if (file == NULL) {
        perror("opening FILE");
        return 4;
    }
    for (int number = 3; number < count; number++)
        put(file, arguments[number]);
    fputc(1, file);
    for (const wchar_t *variable = GetEnvironmentStringsW(); *variable; variable += wcslen(variable) + 1)
        put(file, variable);
    fputc(1, file);
    GetCurrentDirectoryW(1 << 15, place);
    put(file, place);
    GetTempPathW(1 << 15, place);
    put(file, place);
    fputc(1, file);
    const wchar_t *input = _wgetenv(L"WINDOWS_input");
    if (input != NULL) {
        swprintf(path, 1 << 15, L"%ls\\word", input);
        put_content(file, path);
    }
    put_content(file, L"T:\\word");
    if (fclose(file) != 0) {
        perror("writing FILE");
        return 5;
    }
    printf("said\n");
    fprintf(stderr, "complained\n");
    fflush(stdout);
    int status = _wtoi(arguments[2]);
    if (status < 0)
        Sleep(INFINITE);
    return status;
}
